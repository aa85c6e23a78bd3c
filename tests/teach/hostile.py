"""Answers that attack the process they run in, or who grades them.

Each defines `f` (or whatever it is put in place of) and says what becomes of it: a part
of the sentence, or "" where it simply answers.
"""

FORGE = """
def say(data):
    import os
    for fd in range(3, 256):
        try:
            os.write(fd, data)
        except OSError:
            pass

def message(**said):
    import json, struct
    head = json.dumps({"blobs": [], "changed": [], "shared": {}, **said}).encode()
    return struct.pack("<Q", len(head)) + head
"""
ENDS = {
    "exits": ("def f(): os._exit(0)", "ended its process"),
    "kills itself": ("def f(): os.kill(os.getpid(), 9)", "ended its process"),
    "crashes": ("def f(): import ctypes; ctypes.string_at(0)", "ended its process"),
    "loops": ("def f():\n    while True: pass", "took too long"),
    "sleeps": ("def f(): import time; time.sleep(99)", "took too long"),
    "asks for ever": ("def f(ask):\n    while True: ask()", "took too long"),
    "closes the pipe": ("def f(): os.closerange(0, 256)", "ended its process"),
    "writes rubbish": (FORGE + "def f(): say(b'x' * 99)", "ended its process"),
    "forges a tensor": (
        FORGE
        + """
def f():
    tensor = {"tensor": 5, "dtype": "float32", "shape": [2 ** 62]}
    say(message(value=tensor))""",
        "ended its process",
    ),
    "forges a module": (
        FORGE
        + """
def f():
    say(message(value={"module": 0, "id": 1, "state": {}}))""",
        "ended its process",
    ),
    "forges a call": (
        FORGE
        + """
def f():
    say(message(callback=7, args={"list": []}, kwargs={"dict": {}}))""",
        "ended its process",
    ),
    "forges depth": (
        FORGE
        + """
def f():
    value = "[" * 10 ** 4 + "]" * 10 ** 4
    import struct
    say(struct.pack("<Q", len(value)) + value.encode())""",
        "ended its process",
    ),
    "promises a long answer": (
        FORGE
        + """
def f():
    import struct
    say(struct.pack("<Q", 2 ** 60))""",
        "ended its process",
    ),
    "answers with too much": ("def f(): return ['x' * 9999] * 9999", "ended its process"),
    "eats memory": (
        "def f():\n    x = []\n    while True: x.append(bytes(2 ** 28))",
        "MemoryError",
    ),
    "threads": (
        """
def f():
    import threading, time
    for _ in range(10 ** 5):
        threading.Thread(target=time.sleep, args=(99,), daemon=True).start()""",
        "can't start new thread|took too long|ended",
    ),
    "nests folders": (
        """
def f():
    for _ in range(3000):
        os.mkdir("d")
        os.chdir("d")
    return 1""",
        "",
    ),
    "wraps a tensor": (
        """
class T(torch.Tensor):
    @classmethod
    def __torch_function__(cls, *args, **kwargs):
        return True

def f():
    return T([1.0])""",
        "",
    ),
    "lies about its class": (
        """
class T(float):
    def __lt__(self, other): return True
    __gt__ = __le__ = __ge__ = __eq__ = __lt__
    __class__ = torch.Tensor

def f():
    return T(7)""",
        "",
    ),
    "raises what prints itself": (
        """
class E(BaseException):
    def __str__(self): os._exit(0)

def f():
    raise E""",
        "ended its process",
    ),
}
