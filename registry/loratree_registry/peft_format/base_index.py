"""A base's manifest, looked up by name: its parameters, the kinds of its modules, its ties; standard library only."""

from collections import defaultdict

from loratree_registry.core.manifest import BaseManifest, Parameter


class BaseIndex:
    """What a reader of an adapter asks of the base; a module is one that owns parameters itself."""

    def __init__(self, manifest: BaseManifest) -> None:
        self.parameters = manifest.by_name()
        self.vocabulary_size = manifest.vocabulary_size
        self.architecture = manifest.architecture or ""
        self.kinds: dict[str, str] = {}
        self._owned: dict[str, list[Parameter]] = defaultdict(list)
        self._ties: dict[str, list[str]] = defaultdict(list)
        for parameter in manifest.parameters:
            self.kinds[module_of(parameter.name)] = parameter.kind
            self._owned[module_of(parameter.name)].append(parameter)
            self._ties[parameter.tied_to or parameter.name].append(parameter.name)

    def owned(self, module: str) -> list[Parameter]:
        """The parameters of `module` itself."""
        return self._owned.get(module, [])

    def source(self, name: str) -> Parameter:
        """The tensor that holds the values of the parameter `name`: its own, where it is untied."""
        parameter = self.parameters[name]
        return parameter if parameter.tied_to is None else self.parameters[parameter.tied_to]

    def tied(self, name: str) -> list[str]:
        """Every name of the tensor that `name` is one of, itself as well."""
        return self._ties[self.source(name).name]


def module_of(name: str) -> str:
    """The module that owns the parameter `name`."""
    return name.rpartition(".")[0]
