# SPDX-License-Identifier: Apache-2.0
"""``python packaging/build COMMAND``: what `make deb`, `make lock` and the other packages call.

tree deb|rpm FOLDER     lay out all that is installed below FOLDER
native VERSION          compile what the packages hold for that Python, in build/native-VERSION
deb FOLDER              build the Debian package into FOLDER
rpm FOLDER              build the package for EL into FOLDER
rpm-of TREE NUMBER FOLDER   one of a tree that is there, as that version, for tests
repo FOLDER PACKAGES    signed repositories of the packages in PACKAGES (KEY, URL: see repo.py)
lock                    write packaging/vendor.lock anew
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import deb
import layout
import native
import repo
import rpm
import wheels
from ground import Refused, say


def main(words: list[str]) -> int:
    try:
        match words:
            case ["tree", ("deb" | "rpm") as kind, folder]:
                layout.lay_out(kind, Path(folder).absolute())
            case ["native", version]:
                native.compile_trees([version])
            case ["deb", folder]:
                deb.build(Path(folder).absolute())
            case ["rpm", folder]:
                rpm.build(Path(folder).absolute())
            case ["rpm-of", tree, number, folder]:
                rpm.pack(Path(tree).absolute(), number, Path(folder).absolute(), rpm.QUICK_PAYLOAD)
            case ["repo", folder, packages]:
                key, url = os.environ.get("KEY", ""), os.environ.get("URL", "")
                repo.build(Path(packages).absolute(), Path(folder).absolute(), key, url)
            case ["lock"]:
                wheels.write_lock()
            case _:
                print((__doc__ or "").strip(), file=sys.stderr)
                return 2
    except Refused as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
