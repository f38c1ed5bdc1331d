"""`python experiments/generate.py …` is `beni generate …`."""

from beni.cli.main import run

if __name__ == "__main__":
    run("generate")
