"""A Python command: arguments, environment, files, an exit code."""

import os
import sys

from wit_world import exports


class Run(exports.Run):
    def run(self) -> None:
        name = os.environ.get("NAME", "nobody")
        print(f"hello {name}, {' '.join(sys.argv[1:])} from Python {sys.version_info.major}")
        with open("/tmp/note", "w") as note:
            note.write("written\n")
        print(open("/tmp/note").read(), end="", flush=True)
