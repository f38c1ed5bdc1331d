"""`python experiments/run.py …` is `beni train …`."""

from beni.cli.main import run

if __name__ == "__main__":
    run("train")
