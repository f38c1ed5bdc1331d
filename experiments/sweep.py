"""`python experiments/sweep.py …` is `beni sweep …`."""

from beni.cli.main import run

if __name__ == "__main__":
    run("sweep")
