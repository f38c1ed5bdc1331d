"""The options of a run that belong to no part: data, batch, optimizer, and how the run happens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

from beni.errors import ConfigError

POSITIVE = 5e-324
"""The smallest number that is not zero."""
MOST_SECONDS = 1e6
"""Longest time-out: twelve days."""
MOST_FLOPS = 1e30
"""Largest budget: some thousand times what the largest trainings have had."""


@dataclass(frozen=True, slots=True)
class DataConfig:
    """What is trained and judged on."""

    data: tuple[str, ...] = ("easy_vqa",)
    """Training data, one SPEC per source: easy_vqa, shapes, llava:FILE, hf:ID, webdataset:TARS, text:FILE; options as
    ?key=value&…; template=NAME, loss_weight=W and metric=exact|vqa|choice|caption belong to every source"""
    weights: tuple[float, ...] = ()
    """Relative number of samples drawn from each source; by default every source once per epoch."""
    eval_data: tuple[str, ...] = ()
    """Data judged at the end; by default the test splits of the training sources that have one."""
    eval_limit: int = 0
    """Judge a choice of this many items (0: all), the same for every seed; recorded in result.json."""
    template: str = ""
    """Chat template: plain, vicuna, llama_2, chatml, a FILE.jinja, or empty for the LLM's own."""
    on_bad_sample: Literal["skip", "error"] = "skip"
    """What an image that cannot be read, or a sample that cannot be made, does in training: it is left out and listed,
    or the run stops."""
    stream_block: int = 2048
    """Samples of all sources together that are read, shuffled and packed at once, where one of them is a stream."""
    workers: int = 1
    """Processes that load and cut images; 0 loads in the training process."""
    augment: float = 0.0
    """Strength of label-safe augmentation (shift and zoom) as a share of the image's side; 0: none."""
    eval_batch: int = 128
    """Questions answered at a time."""
    max_new_tokens: int = 32
    """Longest answer in tokens."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigError("option 'data' is empty: name at least one source")
        _within(
            self,
            eval_limit=(0, inf),
            stream_block=(1, inf),
            workers=(0, inf),
            augment=(0, 0.5),
            eval_batch=(1, inf),
            max_new_tokens=(1, inf),
        )


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """The global batch: `rows` packed rows per optimizer step, shared by however many processes there are."""

    rows: int = 1
    """Rows per optimizer step. Each process takes rows / processes of them, one after another."""
    row_tokens: int = 1536
    """Most positions of the language model in a row."""
    row_images: int = 8
    """Most images in a row. As long as no other limit binds first, a step sees as many of them whatever an architecture
    makes of an image, and comparisons take as many steps."""
    row_crops: int = 64
    """Most crops per encoder in a row."""
    row_memory: int = 16384
    """Most visual tokens in a row, wherever the fusion puts them."""
    order: Literal["shuffled", "length", "modality"] = "shuffled"
    """What meets in a row and a step of training: whatever comes; samples of similar length; or only samples with
    images, or only without any, of similar length."""

    def __post_init__(self) -> None:
        _within(self, rows=(1, inf), row_tokens=(1, inf), row_images=(1, inf))
        _within(self, row_crops=(1, inf), row_memory=(1, inf))


@dataclass(frozen=True, slots=True)
class OptimConfig:
    """AdamW; the learning rate rises, and then follows a schedule."""

    steps: int = 0
    """Optimizer steps; 0 means: as many as `samples`, `flops` or `epochs` take."""
    samples: int = 0
    """Samples to be trained on, each counted whenever it is seen: as many steps as they take; of streams by what their
    first block has. 0: not given."""
    flops: float = 0.0
    """Operations of the model, forward and backward, of all processes together: as many steps as they pay for, by the
    mean of some rows. MFU's, with attention in full, and with encoders whatever --feature-cache spares. 0: not given.
    """
    epochs: float = 5.0
    """Passes over the training data, when neither `steps` nor `samples` nor `flops` is given."""
    lr: float = 2e-4
    """Peak learning rate of parts that start from random weights."""
    lr_pretrained: float = 2e-5
    """Peak learning rate of parts that were loaded and are trained on."""
    part_lr: Mapping[str, float] = field(default_factory=dict)
    """Peak learning rates of parts by name, instead of the two above: encoder, encoder.KEY, connector, fusion, llm."""
    gate_speed: float = 20.0
    """How much faster gates (parameters of one number) learn: their scale is 1, that of weights about 1/√width."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """After the rise: half a cosine or a straight line down to zero; or no change; or no change and then a straight
    line down to zero (warm-up, stable, decay)."""
    decay: float = 0.2
    """Share of the steps in which the learning rate of `wsd` falls."""
    weight_decay: float = 0.05
    """Decay of weight matrices; norms, biases, gates, latents and embeddings have none."""
    part_weight_decay: Mapping[str, float] = field(default_factory=dict)
    """Decay of the weight matrices of parts by name, instead of the above."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of AdamW's averages of the gradient and of its square."""
    clip: float = 1.0
    """Largest norm of the whole gradient."""
    skip_steps: int = 0
    """Steps that may be left out because the loss or the gradient is not finite; one more stops the run."""
    init: str = ""
    """Saved model (RUN/model) whose weights the parts of the same names start from; they count as loaded."""
    train: tuple[str, ...] = ()
    """Parts to train: encoder, encoder.KEY, connector, fusion, llm. By default those that start from random weights."""
    freeze_layers: Mapping[str, int] = field(default_factory=dict)
    """How many of the first layers of a part stay frozen while the rest of it is trained: encoder, encoder.KEY,
    connector, llm."""

    def __post_init__(self) -> None:
        _within(self, steps=(0, inf), samples=(0, inf), flops=(0, MOST_FLOPS), epochs=(POSITIVE, inf))
        _within(self, lr=(0, inf), lr_pretrained=(0, inf), gate_speed=(0, inf))
        _within(self, warmup=(0, 1), decay=(0, 1), weight_decay=(0, inf), clip=(POSITIVE, inf), skip_steps=(0, inf))
        if len(self.budgets) > 1:
            given = " and ".join(f"'{name}' {value}" for name, value in self.budgets.items())
            raise ConfigError(f"options {given} each say how long the training is: give one of them, and the rest as 0")
        for name in ("part_lr", "part_weight_decay"):
            for part, value in getattr(self, name).items():
                if not 0 <= value < inf:
                    raise ConfigError(f"option '{name}' gives {part} {value}; it must be at least 0")
        for part, count in self.freeze_layers.items():
            if count < 0:
                raise ConfigError(f"option 'freeze_layers' gives {part} {count}; it must be at least 0")
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            raise ConfigError(
                f"options 'warmup' {self.warmup:g} and 'decay' {self.decay:g} are shares of one run: together at most 1"
            )

    @property
    def budgets(self) -> dict[str, float]:
        """What says how long the training is, by option: one, or none where `epochs` does."""
        return {name: value for name in ("steps", "samples", "flops") if (value := getattr(self, name))}


Adapter = Literal["none", "lora", "rslora", "dora"]
Quantization = Literal["none", "hqq8", "hqq4", "nf4"]


@dataclass(frozen=True, slots=True)
class PeftOptions:
    """Low-rank adapters in the linear layers of a part that stays frozen itself (PEFT), maybe in few bits."""

    peft: Adapter = "none"
    """Adapters of the language model: LoRA; rsLoRA, scaled by alpha/√rank; DoRA, with a trained length of each row."""
    peft_encoder: Adapter = "none"
    """Adapters of the encoders."""
    peft_rank: int = 16
    """Rank of the adapters."""
    peft_alpha: float = 32.0
    """What they compute is scaled by alpha/rank."""
    peft_dropout: float = 0.0
    """Probability with which an input of an adapter is dropped in training."""
    peft_targets: str = ""
    """Regular expression for whole paths of the linear layers that get one (`.*(q|v)_proj`); empty: all of the decoder
    layers, and of an encoder's blocks. Each part that has adapters must have such layers; config.json lists them."""
    quant: Quantization = "none"
    """Keep the weights of the linear layers in the language model's decoder layers in 8 or 4 bits, frozen: by HQQ
    (the extra hqq), or as 4-bit NormalFloat by bitsandbytes (the extra bnb)."""

    def __post_init__(self) -> None:
        _within(self, peft_rank=(1, inf), peft_alpha=(POSITIVE, inf), peft_dropout=(0, 1))


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Where and how a run happens; nothing here changes which function is learned."""

    out: str = ""
    """Folder of the run; by default runs/<time>-<connector>-<fusion>."""
    resume: str = "never"
    """never, auto (continue the run in --out if it has a checkpoint), or the PATH of a checkpoint."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 keeps only the final one."""
    keep: int = 2
    """Newest checkpoints that are kept; older ones are deleted after a newer one is committed."""
    async_checkpoints: bool = False
    """Copy what a checkpoint holds to memory, and write it while training goes on."""
    on_checkpoint_error: Literal["stop", "warn"] = "stop"
    """What a checkpoint that cannot be written does (the disk is full): the run ends, or goes on and tries again when
    the next one is due. The one behind the last step never ends a run: the model can still be judged and saved."""
    select: Literal["last", "best"] = "last"
    """Which weights are judged and saved: those of the last step, or those with the lowest loss on the validation
    split, of which a checkpoint is kept beside the newest."""
    eval_every: int = 0
    """Steps between losses on the validation split; 0 means ten times per run."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the computation (masters are always fp32); auto: bf16 on GPUs that have it, and on CPUs where
    it is faster (AMX or AVX512-BF16, and a language model at least 256 wide); fp32 elsewhere."""
    replicas: int = 1
    """Copies of the model among the processes; each is sharded over processes / replicas of them (hybrid sharding: the
    processes of a machine share one copy). 1 shards over all."""
    frozen_encoders: Literal["sharded", "replicated", "root"] = "sharded"
    """Where the weights of encoders lie of which nothing is trained: sharded like everything else, and gathered block
    by block; whole on every process, which costs memory and no communication; or sharded and gathered at once for
    each row that a process has, together with what belongs to no block."""
    activation_checkpointing: Literal["none", "full", "selective"] = "none"
    """What blocks compute again in the backward pass instead of keeping it: nothing; everything; all but the results of
    matrix products, convolutions and attention."""
    activation_checkpointing_every: int = 1
    """Blocks for which this is done: every n-th of an encoder, of a connector, of the language model."""
    compile: bool = False
    """Compile the blocks of encoders, connectors and the language model with torch.compile; needs a C++ compiler on a
    CPU."""
    peak_tflops: float = 0.0
    """Dense peak of one device in the precision of the run, of which MFU is a share, for a GPU that is not in beni's
    table (0: look it up, or measure a CPU's)."""
    wandb: str = ""
    """Project in Weights & Biases that is told what is logged (the extra wandb; with WANDB_MODE=offline everything
    stays in the run's folder)."""
    feature_cache: str = ""
    """Folder in which features of frozen encoders are kept, for this run and others: each image is encoded once, before
    the first step, those of validation and judging too, and no encoder runs from then on. Not together with --augment,
    streams, or encoders that are trained."""
    feature_cache_gb: float = 50.0
    """Room that this folder may take, in 10⁹ bytes; features that no run is using make way, those first that were used
    longest ago."""
    timeout: float = 600.0
    """Seconds that processes wait for one that does not answer before they end and name it."""
    seed: int = 0
    dry_run: bool = False
    """Build everything, print the freeze table, the plan and one decoded batch, write sample.html, and stop."""

    def __post_init__(self) -> None:
        _within(
            self,
            checkpoint_every=(0, inf),
            keep=(1, inf),
            eval_every=(0, inf),
            replicas=(1, inf),
            activation_checkpointing_every=(1, inf),
            log_every=(1, inf),
            peak_tflops=(0, inf),
            feature_cache_gb=(POSITIVE, inf),
            timeout=(1, MOST_SECONDS),
            seed=(0, inf),
        )


def _within(options: Any, **limits: tuple[float, float]) -> None:
    """Refuse values outside of their limits, both ends allowed."""
    for name, (least, most) in limits.items():
        value = getattr(options, name)
        if not least <= value <= most:
            allowed = (
                f"from {least:g} to {most:g}"
                if most < inf
                else "more than 0"
                if least == POSITIVE
                else f"at least {least:g}"
            )
            raise ConfigError(f"option '{name}' is {value}; it must be {allowed}")
