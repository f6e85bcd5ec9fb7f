"""Writes question_answering.json: what the question-answering pipeline of transformers 4, which transformers 5 no longer has, makes
of given numbers. Not run by the tests; they read the file. To make it anew:

    pip install --target /tmp/four transformers==4.57.1
    PYTHONPATH=/tmp/four:tests/server python tests/oracles/question_answering.py
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from pieces import WORDS, tokenizers
from transformers import BertConfig, BertForQuestionAnswering, PreTrainedTokenizerFast, QuestionAnsweringPipeline

TARGET = Path(__file__).with_suffix(".json")
SPECIAL = {
    "wordpiece": {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"},
    "bytes": {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"},
}


class Given(QuestionAnsweringPipeline):  # type: ignore[misc]
    """The pipeline with numbers drawn by chance in the place of a model's, which it keeps."""

    chance = np.random.default_rng(0)
    scale = 3.0

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        ids = inputs["input_ids"][0].tolist()
        drawn = [np.round(self.chance.normal(scale=self.scale, size=len(ids)), 3) for _ in ("start", "end")]
        self.kept.append({"input_ids": ids, "start": drawn[0].tolist(), "end": drawn[1].tolist()})
        example = inputs.pop("example")
        start, end = (torch.tensor(numbers)[None].float() for numbers in drawn)
        return {"start": start, "end": end, "example": example, **inputs}


def main() -> None:
    assert transformers.__version__.startswith("4."), transformers.__version__
    config = BertConfig(vocab_size=64, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    chance = random.Random(0)
    cases = []
    for name, tokenizer in tokenizers().items():
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=48, **SPECIAL[name])
        pipeline = Given(model=BertForQuestionAnswering(config), tokenizer=fast, device="cpu")
        for number in range(24):
            pipeline.kept, pipeline.scale = [], chance.choice([0.3, 3.0])
            question = " ".join(chance.choices(WORDS[:5], k=1 if number % 2 else chance.randrange(1, 4)))
            context = " ".join(chance.choices(WORDS, k=chance.choice([12, 20, 40])))
            parameters = {
                "top_k": chance.choice([1, 1, 3, 5]),
                "max_answer_len": chance.choice([15, 3]),
                "handle_impossible_answer": chance.random() < 0.3,
                "align_to_words": chance.random() < 0.7,
            } | ({} if number % 2 else {"max_seq_len": 36, "doc_stride": chance.choice([0, 4, 9])})
            found = pipeline(question=question, context=context, **parameters)
            answers = found if isinstance(found, list) else [found]
            cases.append(
                {
                    "tokenizer": name,
                    "question": question,
                    "context": context,
                    "parameters": parameters,
                    "windows": pipeline.kept,
                    "answers": answers,
                }
            )
    TARGET.write_text("[\n" + ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main()
