"""Uploads: a body on disk becomes a published package. Streams, checks everything, then commits; leaves nothing behind.

The steps are blocking and run on a worker thread.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from adapter_store.composition import parse, references
from adapter_store.errors import StoreError, UnsupportedMethod, WrongBackbone
from adapter_store.families import FAMILIES
from adapter_store.importers import Frozen, Step, import_to_file, needed_members, setup_steps, write_imported
from adapter_store.manifest import LM_HEADS, Head, Manifest
from adapter_store.methods import Backbone, Norms, Prefix, Prompt
from adapter_store.names import parse_reference, shown
from adapter_store.package import Package
from adapter_store.signatures import Trust
from adapter_store.store import Published, Store, summarise
from server.access.visibility import check_name as check_seen
from server.core import LOCAL, Caller, Use
from server.router import Router
from server.setups import check_places, reserved_tokens


@dataclass(frozen=True, slots=True)
class Upload:
    """What is asked of a publish: under which name, with which alias moved in the same commit, by whom.

    members: which package a fusion's member is, by the name that its config gives it; by default the one of that name.
    signature: `SIGNER:BASE64` over the package's digest.
    """

    name: str
    alias: str | None = None
    only_new: bool = False
    members: Mapping[str, str] = field(default_factory=dict)
    signature: str | None = None
    caller: Caller = LOCAL


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A publish and what an importer remarked."""

    published: Published
    warnings: tuple[str, ...] = ()
    report: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Publisher:
    """Publishes to one store for one backbone. has_pooler, has_lm_head: whether the backbone's checkpoint carries their weights.

    frozen: the checkpoint's tensors by name, which whole checkpoints that are imported are compared with. trial runs a
    package's golden examples through the backbone. trust refuses packages for what signed them (or did not).
    scratch: where what is imported lies until it is published. max_tokens: what one input may have.
    """

    store: Store
    router: Router
    backbone: Backbone
    has_pooler: bool
    has_lm_head: bool
    frozen: Frozen | None = None
    trial: Callable[[str, Package, Path], None] = lambda name, package, path: None
    trust: Trust = field(default_factory=lambda: Trust(None))
    scratch: Path | None = None
    max_tokens: int | None = None

    def package(self, path: Path, upload: Upload) -> Uploaded:
        """Publishes a package file."""
        package = self.store.examine(path, upload.name, self.backbone, upload.alias, lambda package: self._check(package, upload))
        return Uploaded(self._publish([(upload.name, package, path)], upload))

    def folder(self, files: Mapping[str, Path], upload: Upload) -> Uploaded:
        """Imports the files of an adapter's folder and publishes the package; of a setup, its members too, in one commit."""
        with tempfile.TemporaryDirectory(prefix="import-", dir=self.scratch) as folder:
            steps = setup_steps(files, self.backbone, upload.name)
            if steps is not None:
                return self._setup(steps, Path(folder), upload)
            target = Path(folder) / "package.safetensors"
            imported = import_to_file(files, self.backbone, target, members=self._pins(files, upload), frozen=self.frozen)
            uploaded = self.package(target, upload)
            return replace(uploaded, warnings=imported.warnings, report=imported.report)

    def sound(self, folder: Path) -> dict[Path, Package]:
        """The package files of a folder, checked by themselves. Raises StoreError, with the file, for the first that is refused."""
        if not folder.is_dir():
            raise StoreError(f"There is no folder '{folder}' to publish packages from.")
        packages = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                packages[path] = self.store.examine(path, path.stem, self.backbone, check=self._check_alone)
            except StoreError as error:
                raise StoreError(f"{path.name} cannot be published: {error}") from error
        return packages

    def all_of(self, folder: Path) -> list[Uploaded]:
        """Publishes every package file of a folder under its file's name, those first that others are composed of.

        Raises StoreError for the first that is refused.
        """
        packages = self.sound(folder)
        waiting = {path: set(summarise(package).members) for path, package in packages.items()}
        uploaded: list[Uploaded] = []
        while waiting:
            unpublished = {f"{path.stem}@{packages[path].digest}" for path in waiting}
            ready = [path for path, members in waiting.items() if not members & unpublished]
            for path in ready or list(waiting)[:1]:  # packages that wait for each other cannot be, and are refused
                uploaded.append(self.package(path, Upload(path.stem)))
                del waiting[path]
        return uploaded

    def _publish(self, packages: Sequence[tuple[str, Package, Path]], upload: Upload) -> Published:
        """The last step: what is checked becomes a commit."""
        for name, package, path in packages:
            self.trust.check(name, package.digest, upload.signature)
            if not self.store.catalog.holds(package.digest):
                self.trial(name, package, path)
        return self.store.publish_all(packages, upload.alias, upload.only_new, upload.caller.name, upload.signature)[-1]

    def _pins(self, files: Mapping[str, Path], upload: Upload) -> dict[str, str]:
        """What the members of a fusion folder are: pinned references by the names of its config."""
        needed = needed_members(files)
        unknown = sorted(upload.members.keys() - set(needed))
        if unknown:
            raise UnsupportedMethod(f"The folder has no member {shown(unknown[0])}; its members are {', '.join(needed) or 'none'}.")
        pins = {}
        for member in needed:
            try:
                reference = parse_reference(upload.members.get(member, member))
                check_seen(upload.caller, reference.name)
                pins[member] = self.store.resolve(reference).pin
            except StoreError as error:
                told = "must be published first, or be given another name with member=MEMBER=NAME (turret push --member)."
                raise type(error)(f"{error} The fusion's member {shown(member)} {told}") from None
        return pins

    def _setup(self, steps: Sequence[Step], folder: Path, upload: Upload) -> Uploaded:
        """Publishes the packages of a setup in one commit, the setup itself last."""
        pins: dict[str, str] = {}
        packages: list[tuple[str, Package, Path]] = []
        warnings: list[str] = []
        report: list[str] = []
        pending: dict[str, Manifest] = {}
        for number, step in enumerate(steps):
            check_seen(upload.caller, step.name)
            imported = step.build(pins)
            path = folder / f"{number}.safetensors"
            write_imported(imported, path)
            package = self.store.examine(path, step.name, self.backbone, upload.alias, self._check_alone)
            pending[f"{step.name}@{package.digest}"] = package.manifest
            pins[step.name] = f"{step.name}@{package.digest}"
            packages.append((step.name, package, path))
            warnings += [f"{step.name}: {warning}" for warning in imported.warnings]
            report += [f"{step.name}: {line}" for line in imported.report]
        for _, package, _ in packages:
            self.router.check(package.manifest, package.digest, pending)
        return Uploaded(self._publish(packages, upload), tuple(warnings), tuple(report))

    def _check(self, package: Package, upload: Upload) -> None:
        """Raises UnsupportedMethod for what is not served, WrongBackbone for what this backbone has not, NotFound for unknown members."""
        self._check_alone(package)
        if package.manifest.composition is not None:
            for reference in references(parse(package.manifest.composition).root):
                if reference.name != "self":
                    check_seen(upload.caller, reference.name)
        self.router.check(package.manifest, package.digest, {})

    def _check_alone(self, package: Package) -> None:
        """`_check` of everything but the package's composition."""
        check_places(package.manifest, self.backbone)
        self._check_methods(package.manifest)
        taken = reserved_tokens(Use(package.digest), lambda digest: package.manifest)
        if self.max_tokens is not None and taken >= self.max_tokens:
            raise UnsupportedMethod(
                f"The package's prefix or prompt takes {taken} of the backbone's {self.max_tokens} tokens, which leaves none for an input."
            )
        if package.manifest.head is not None:
            self._check_head(package.manifest.head)

    def _check_methods(self, manifest: Manifest) -> None:
        family = FAMILIES[self.backbone.model_type]
        for method in manifest.methods.values():
            if isinstance(method, Prefix) and family.hooked:
                raise UnsupportedMethod(f"Prefixes on models of type '{self.backbone.model_type}' are not served.")
            if isinstance(method, Norms) and not any(layers.norms for layers in family.layers):
                raise UnsupportedMethod(f"Tuned layer norms on models of type '{self.backbone.model_type}' are not served.")
            if isinstance(method, Prompt) and method.place == "embeddings" and (family.encoder_decoder or family.causal):
                raise UnsupportedMethod(f"Prompts at the {method.place} of models of type '{self.backbone.model_type}' are not served.")
            if method.method == "lora" and "pooler" in method.modules and not self.has_pooler:
                raise WrongBackbone("The package adapts the backbone's pooler, but the checkpoint of the backbone has no pooler weights.")

    def _check_head(self, head: Head) -> None:
        family = FAMILIES[self.backbone.model_type]
        if head.use_pooler and not head.own_pooler and not self.has_pooler:
            raise WrongBackbone(
                "The package's head reads the backbone's pooler, but the checkpoint of the backbone has no pooler weights: "
                "serve a checkpoint that has them."
            )
        if head.type in LM_HEADS and head.layers == 0 and not self.has_lm_head:
            raise WrongBackbone("The package reads the backbone's own language-model head, but the checkpoint of the backbone has none.")
        if (head.type == "seq2seq_lm") != family.encoder_decoder and head.type in LM_HEADS:
            raise UnsupportedMethod(f"A {head.type} head on a model of type '{self.backbone.model_type}' is not served.")
