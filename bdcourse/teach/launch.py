"""Started as a program for each submission: confines itself, then becomes its worker.

In a file of its own because nothing that might start a thread may be imported before
the process is confined. Python runs it isolated (`-I`), so that neither the environment
nor a file of the submission decides what is imported.
"""

import json
import os
import sys


def main() -> None:
    settings = json.loads(sys.argv[1])
    sys.path.append(settings["root"])  # behind everything that Python brings
    os.chdir(settings["scratch"])
    from bdcourse.teach.confine import confine

    lacking = confine(settings["readable"], settings["scratch"])
    from bdcourse.teach.worker import serve

    serve(settings["read"], settings["write"], lacking)
    os._exit(0)  # whatever the submission has left to be done at the end is not


if __name__ == "__main__":
    main()
