"""Bad input by the hundred, from small recipes.

A recipe is a module here that yields `Case`s (`harness.py`): it crosses a list of bad files or values with the places
that take them. To add one, write a function that yields cases, and name it in `RECIPES` of `test_commands.py`:

    def pictures() -> Iterator[Case]:
        for kind, write in BAD_PICTURES.items():
            yield Case(f"pictures/{kind}/photo", ("transfer",), {"photo": "bad.png"}, lambda: write("bad.png"))

Each case runs in a folder of its own that holds good files of every kind (`kit.py`). What must hold for all of them is
in `harness.py`. New commands and options need no recipe for bad numbers and texts: those are read from the command
tree (`commands.py`); a new command needs only a line that works, in `GOOD`.

A third of the cases runs each time, always the same, and the first of every parameter; INST_TEST_ALL=1 runs all.

What enters by HTTP has its own tests in `test_requests.py`.
"""
