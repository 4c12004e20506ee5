"""An index of a base's manifest by name: parameters, kinds of modules, ties; standard library only."""

from collections import defaultdict

from loratree_registry.core.manifest import BaseManifest, Parameter


class BaseIndex:
    """An index of a base, for checking an adapter. It lists only the modules that own parameters directly."""

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
        """Return the parameters that `module` owns directly, not through a submodule."""
        return self._owned.get(module, [])

    def source(self, name: str) -> Parameter:
        """Return the tensor that stores the values of the parameter `name`: its own, or the one that it is tied to."""
        parameter = self.parameters[name]
        return parameter if parameter.tied_to is None else self.parameters[parameter.tied_to]

    def tied(self, name: str) -> list[str]:
        """Return every name that shares a tensor with `name`, including `name`."""
        return self._ties[self.source(name).name]


def module_of(name: str) -> str:
    """Return the module that owns the parameter `name`."""
    return name.rpartition(".")[0]
