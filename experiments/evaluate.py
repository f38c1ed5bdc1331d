"""`python experiments/evaluate.py …` is `beni evaluate …`."""

from beni.cli.main import run

if __name__ == "__main__":
    run("evaluate")
