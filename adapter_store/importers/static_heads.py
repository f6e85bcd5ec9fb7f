"""The heads of transformers' own model classes, as data: the flexible head that each is, and the modules it consists of.

The table is the `adapters` library's (head_utils.py, adapters 1.3.0) for the families that are served; PEFT names no heads, so its
folders use it too, by family and task.
"""

from dataclasses import dataclass

from adapter_store.manifest import LM_HEADS


@dataclass(frozen=True, slots=True)
class Static:
    """One class's head. modules: its linears, first layer first; of a language model with two layers dense, norm and decoder.

    bias: whether the last linear has one. also: further names under which the decoder's bias may be written.
    """

    type: str
    modules: tuple[str, ...]
    activation: str | None = None
    use_pooler: bool = False
    bias: bool = True
    also: str | None = None

    @property
    def layers(self) -> int:
        """Number of linears from the hidden state to the output."""
        return 2 if self.type in LM_HEADS and len(self.modules) == 3 else len(self.modules)


_TAGGING = Static("tagging", ("classifier",))
_SCORED_TAGGING = Static("tagging", ("score",))
_SPANS = Static("question_answering", ("qa_outputs",))
_POOLED = Static("classification", ("classifier",), use_pooler=True)
_CHOICE = Static("multiple_choice", ("classifier",), use_pooler=True)
_SCORE = Static("classification", ("score",), bias=False)
_LM = Static("causal_lm", ("lm_head",), bias=False)
_ROBERTA = Static("classification", ("classifier.dense", "classifier.out_proj"), "tanh")
_DISTILBERT = ("pre_classifier", "classifier")
_BERT_LM = ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.decoder")
_ROBERTA_LM = ("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder")
_ELECTRA_LM = ("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head")
_ALBERT_LM = ("predictions.dense", "predictions.LayerNorm", "predictions.decoder")
_DISTILBERT_LM = ("vocab_transform", "vocab_layer_norm", "vocab_projector")
_ROBERTA_CLASSES = {
    "ForSequenceClassification": _ROBERTA,
    "ForMultipleChoice": _CHOICE,
    "ForTokenClassification": _TAGGING,
    "ForQuestionAnswering": _SPANS,
    "ForMaskedLM": Static("masked_lm", _ROBERTA_LM, "gelu", also="lm_head.bias"),
    "ForCausalLM": Static("causal_lm", _ROBERTA_LM, "gelu", also="lm_head.bias"),
}
_T5_CLASSES = {
    "ForConditionalGeneration": Static("seq2seq_lm", ("lm_head",), bias=False),
    "ForQuestionAnswering": _SPANS,
    "ForSequenceClassification": Static("classification", ("classification_head.dense", "classification_head.out_proj"), "tanh"),
}

STATIC: dict[str, Static] = {
    "AlbertForSequenceClassification": _POOLED,
    "AlbertForMultipleChoice": _CHOICE,
    "AlbertForTokenClassification": _TAGGING,
    "AlbertForQuestionAnswering": _SPANS,
    "AlbertForMaskedLM": Static("masked_lm", _ALBERT_LM, "gelu_new", also="predictions.bias"),
    "BertForSequenceClassification": _POOLED,
    "BertForMultipleChoice": _CHOICE,
    "BertForTokenClassification": _TAGGING,
    "BertForQuestionAnswering": _SPANS,
    "BertForMaskedLM": Static("masked_lm", _BERT_LM, "gelu", also="cls.predictions.bias"),
    "BertLMHeadModel": Static("causal_lm", _BERT_LM, "gelu", also="cls.predictions.bias"),
    **{f"Roberta{task}": head for task, head in _ROBERTA_CLASSES.items()},
    **{f"XLMRoberta{task}": head for task, head in _ROBERTA_CLASSES.items()},
    "ElectraForSequenceClassification": Static("classification", ("classifier.dense", "classifier.out_proj"), "gelu"),
    "ElectraForMultipleChoice": Static("multiple_choice", ("sequence_summary.summary", "classifier"), "gelu"),
    "ElectraForTokenClassification": _TAGGING,
    "ElectraForQuestionAnswering": _SPANS,
    "ElectraForMaskedLM": Static("masked_lm", _ELECTRA_LM, "gelu"),
    "ElectraForCausalLM": Static("causal_lm", _ELECTRA_LM, "gelu"),
    "DistilBertForSequenceClassification": Static("classification", _DISTILBERT, "relu"),
    "DistilBertForMultipleChoice": Static("multiple_choice", _DISTILBERT, "relu"),
    "DistilBertForTokenClassification": _TAGGING,
    "DistilBertForQuestionAnswering": _SPANS,
    "DistilBertForMaskedLM": Static("masked_lm", _DISTILBERT_LM, "gelu"),
    "ModernBertForSequenceClassification": _POOLED,
    "ModernBertForTokenClassification": Static("tagging", ("classifier",), use_pooler=True),
    "ModernBertForQuestionAnswering": Static("question_answering", ("classifier",), use_pooler=True),
    "GPT2ForSequenceClassification": _SCORE,
    "GPT2LMHeadModel": _LM,
    "GPT2ForTokenClassification": _TAGGING,
    "GPT2ForQuestionAnswering": _SPANS,
    "LlamaForSequenceClassification": _SCORE,
    "LlamaForCausalLM": _LM,
    "LlamaForQuestionAnswering": _SPANS,
    "LlamaForTokenClassification": _SCORED_TAGGING,
    **{f"T5{task}": head for task, head in _T5_CLASSES.items()},
    **{f"MT5{task}": head for task, head in _T5_CLASSES.items()},
}

# How transformers names the classes of a family.
CLASS_OF = {
    "albert": "Albert", "bert": "Bert", "distilbert": "DistilBert", "electra": "Electra", "gpt2": "GPT2", "llama": "Llama",
    "modernbert": "ModernBert", "mt5": "MT5", "roberta": "Roberta", "t5": "T5", "xlm-roberta": "XLMRoberta",
}  # fmt: skip
