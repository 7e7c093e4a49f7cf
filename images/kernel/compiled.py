# SPDX-License-Identifier: GPL-2.0-or-later
"""What a build folder has compiled: where only files of KVM's modules changed since, the modules are enough.

Make looks at everything else for a few seconds before it finds nothing to do.
"""

from __future__ import annotations

import json
from typing import Any

from images import tools
from images.cache import digest_inputs, file_sha256
from images.kernel.tree import KeptTree

ALL = ["bzImage", "modules"]
"""Make's targets of a whole kernel."""

_KVM = "arch/x86/kvm/kvm.ko"


def is_of_a_module(path: str) -> bool:
    """Returns whether nothing but KVM's modules is compiled from a path of the tree."""
    return path.startswith(("arch/x86/kvm/", "virt/kvm/")) and path.endswith(".c")


class Compiled:
    """The record of a build folder's last whole kernel.

    :param base: its part of the inputs, without what :func:`is_of_a_module`.

    To be made when the tree is prepared and configured.
    """

    def __init__(self, tree: KeptTree, base: dict[str, object]) -> None:
        self._tree = tree
        self._record = tree.out / "compiled.json"
        self._rest = digest_inputs(
            {
                "base": base,
                "changed": {
                    path: file_sha256(tree.src / path) if (tree.src / path).is_file() else ""
                    for path in tree.changed_paths()
                    if not is_of_a_module(path)
                },
                "config": file_sha256(tree.out / ".config"),
                "tools": tools.versions("gcc", "ld", "make"),
            }
        )

    def targets(self) -> list[str]:
        """Make's targets that bring the folder up to date."""
        record = self._read()
        return self.modules() if record["rest"] == self._rest and _KVM in record["modules"] else ALL

    def modules(self) -> list[str]:
        """The paths of the modules in the folder; make's own list does not outlive a build of single ones."""
        return [str(module) for module in self._read()["modules"]]

    def _read(self) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads(self._record.read_text())
        except FileNotFoundError:
            return {"rest": "", "modules": []}
        return record

    def begin(self) -> None:
        """Record that a whole kernel is being made: until it is done, the folder has parts of two."""
        self._record.unlink(missing_ok=True)

    def done(self) -> None:
        """Record that a whole kernel was made."""
        order = (self._tree.out / "modules.order").read_text().split()
        modules = [line.removesuffix(".o") + ".ko" for line in order]
        self._record.write_text(json.dumps({"rest": self._rest, "modules": modules}, indent=1) + "\n")
