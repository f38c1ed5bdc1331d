"""`python benchmarks/throughput.py …` is `beni throughput …`."""

from beni.cli.main import run

if __name__ == "__main__":
    run("throughput")
