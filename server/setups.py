"""What a composition may be: which setups are defined for which members. Knows manifests, no weights and no engine.

The rules are those of the `adapters` library where it has them (its ALLOWED_NESTINGS), and each refusal names the member.
"""

from collections.abc import Callable

from adapter_store.errors import UnsupportedMethod
from adapter_store.manifest import Manifest
from adapter_store.methods import Backbone, Bottleneck, Fusion, Prefix, Prompt
from server.core import Average, Fuse, Setup, Stack, Use, setup_uses

ManifestOf = Callable[[str], Manifest]
Shown = Callable[[str], str]

# Parts of a package that only count where the package comes first, as in the library.
FIRST_ONLY = ("invertible", "prompt")


def check_setup(setup: Setup, manifest_of: ManifestOf, shown: Shown, backbone: Backbone) -> None:
    """Raises UnsupportedMethod, with one sentence, where a setup is not defined for its members."""
    match setup:
        case Use():
            return
        case Stack(children):
            for child in children:
                check_setup(child, manifest_of, shown, backbone)
        case Average(children, _):
            _check_children(children, "average")
            _check_average(children, manifest_of, shown)
        case Fuse(fusion, children):
            _check_children(children, "fuse")
            _check_fuse(fusion, children, manifest_of, shown, backbone)


def _check_children(children: tuple[Setup, ...], word: str) -> None:
    for child in children:
        plain = isinstance(child, Use) or (isinstance(child, Stack) and all(isinstance(inner, Use) for inner in child.children))
        if not plain:
            raise UnsupportedMethod(f"{word}(...) takes adapters and stacks of adapters, nothing else.")


def _check_average(children: tuple[Setup, ...], manifest_of: ManifestOf, shown: Shown) -> None:
    kinds: set[str] = set()
    for digest in (digest for child in children for digest in setup_uses(child)):
        methods = {method.method for method in manifest_of(digest).methods.values()}
        if methods & {"prefix", "norms"}:
            raise UnsupportedMethod(f"average(...) of prefixes or tuned norms is not defined, and '{shown(digest)}' has one.")
        kinds |= methods & {"lora", "ia3"}
    if len(kinds) > 1:
        raise UnsupportedMethod("average(...) of LoRA and (IA)^3 together is not defined: one adds and the other scales.")


def _check_fuse(fusion: str, children: tuple[Setup, ...], manifest_of: ManifestOf, shown: Shown, backbone: Backbone) -> None:
    config = next((method for method in manifest_of(fusion).methods.values() if isinstance(method, Fusion)), None)
    if config is None:
        raise UnsupportedMethod(f"'{shown(fusion)}' has no fusion weights: fuse[...] names the package that has them.")
    members = [digest for child in children for digest in setup_uses(child)]
    for digest in members:
        methods = manifest_of(digest).methods.values()
        others = sorted({method.method for method in methods} - {"bottleneck", "fusion", *FIRST_ONLY})
        if others:
            raise UnsupportedMethod(f"fuse[...] fuses bottleneck adapters only, and '{shown(digest)}' has {' and '.join(others)}.")
        if not any(isinstance(method, Bottleneck) for method in methods):
            raise UnsupportedMethod(f"fuse[...] fuses bottleneck adapters, and '{shown(digest)}' has none.")
    switches = {digest: _switches(manifest_of(digest)) for digest in members}
    odd = next((digest for digest in members if switches[digest] != switches[members[-1]]), None)
    if odd is not None:
        raise UnsupportedMethod(
            f"The members of a fusion must act at the same sites, and '{shown(odd)}' acts at {switches[odd]}, "
            f"'{shown(members[-1])}' at {switches[members[-1]]}."
        )
    for layer in range(backbone.num_layers):
        fused = set(config.sites_of(layer, backbone))
        for digest in members:
            own = next(method for method in manifest_of(digest).methods.values() if isinstance(method, Bottleneck))
            alone = set(own.sites(layer, backbone)) - fused
            if alone:
                raise UnsupportedMethod(
                    f"'{shown(digest)}' acts at the site {sorted(alone)[0]} of layer {layer}, where the fusion has no weights: "
                    "all members of a fusion must act where it does."
                )


def _switches(manifest: Manifest) -> str:
    """The sites of a package's bottleneck, for a sentence."""
    own = next(method for method in manifest.methods.values() if isinstance(method, Bottleneck))
    sites = {"mh": own.mh_adapter, "cross": own.cross_adapter, "output": own.output_adapter}
    return " and ".join(site for site, acts in sites.items() if acts)


def reserved_tokens(setup: Setup | None, manifest_of: ManifestOf) -> int:
    """Positions of the backbone's limit that the setup takes: shifted prefixes, and a prompt among the words of the first package."""
    if setup is None:
        return 0
    taken = 0
    for number, digest in enumerate(setup_uses(setup)):
        for method in manifest_of(digest).methods.values():
            if isinstance(method, Prefix) and method.shift_positions:
                taken += method.prefix_length
            if isinstance(method, Prompt) and method.place == "words" and number == 0:
                taken += method.prompt_length
    return taken


def check_places(manifest: Manifest, backbone: Backbone) -> None:
    """Raises UnsupportedMethod where a method names a linear that the backbone has not."""
    for part, method in manifest.methods.items():
        if isinstance(method, Bottleneck) and len(manifest.methods) == 1 and not method.least(backbone):
            raise UnsupportedMethod(f"The package's {part} acts at no site of the backbone: its switches and leave_out leave none.")
        try:
            method.tensors(manifest.backbone.model_copy(update={"linears": backbone.linears}))
        except ValueError as error:
            raise UnsupportedMethod(f"The package's {part} does not fit the backbone: {error}.") from None
