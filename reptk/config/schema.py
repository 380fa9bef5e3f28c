"""The tables of a recipe as pydantic models, with their defaults and ranges. Unknown keys are errors."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from reptk.config.dotted_keys import is_among
from reptk.config.signature import UNION_TAG, Problem
from reptk.config.value_schedule import ValueSchedule
from reptk.core.errors import UsageError

Table = dict[str, Any]

PART_NAMES = ("data.name", "views.name", "encoder.backbone", "method.name", "loss.name")
"""Keys that say which part is used."""

EXECUTION_KEYS = (
    "data.cache",
    "train.workers",
    "train.device",
    "train.log_every_steps",
    "train.report",
    "train.checkpoint_every_epochs",
    "train.checkpoint_every_steps",
    "train.checkpoint_every_minutes",
    "train.keep_checkpoints",
    "train.keep_best",
    "train.check_files",
    "train.rank_timeout_seconds",
    "train.trackers",
    "trackers",
)
"""Keys, or tables of keys, that say how a run is executed, and do not change its results."""

SAME_RESULT_KEYS = (*EXECUTION_KEYS, "train.max_omitted_steps", "expect", "plugins", "overrides")
"""Keys, or tables of keys, in which two runs may differ and still have the same results."""

UNTITLED_KEYS = ("name", "data.root", "data.download", "data.jpeg", *EXECUTION_KEYS)
"""Keys that say where and how a run is executed, not what is trained."""

ADAPTATION_KEYS = ("freeze", "freeze_batchnorm", "lora_rank", "lora_alpha", "lora_dropout", "lora_layers")
"""Keys of `[encoder]` that say what is trained of it; the others say what it is."""

MAX_TITLE_OVERRIDES = 4
"""Overrides in a title, which has to fit into a line."""


def _with_new_name(final_weights: Any) -> Any:
    """Return "auto" for the name that this value had in earlier recipes, which runs have recorded."""
    if final_weights == "better":
        return "auto"
    return final_weights


def _split_names(value: Any) -> Any:
    """Return the names in a text such as "tensorboard,wandb", which needs no quotes in a shell."""
    if isinstance(value, str):
        return [name.strip() for name in value.split(",") if name.strip()]
    return value


TrackerNames = Annotated[tuple[str, ...], BeforeValidator(_split_names)]
Share = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """Base class of a recipe's tables: without unknown keys, immutable, and with finite numbers only."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class StartSection(Section):
    """The finished run whose encoder a stage starts from. Its recipe completes that of the stage."""

    run: str = Field(min_length=1, description="its folder, set by --from RUN")
    classifier: Literal["new", "run"] = Field(
        "new", description="run: that of the run, which must be of the same classes; a new one if the run has none"
    )
    pretrained: bool = Field(False, description="whether the run itself had started from trained weights")
    label_seed: int | None = Field(
        None, description="that of the run's share of labels (data.labelled), which the stage uses"
    )


NUMBER_TAG = f"{UNION_TAG}number"
SCHEDULE_TAG = f"{UNION_TAG}schedule"


def _form_of(value: Any) -> str:
    """Return in which of two forms a value is written: as a number, or as the table of a schedule."""
    if isinstance(value, Mapping | ValueSchedule):
        return SCHEDULE_TAG
    return NUMBER_TAG


def _check_not_negative(schedule: ValueSchedule) -> ValueSchedule:
    if min(schedule.start, schedule.end) < 0:
        raise ValueError(f"start and end must be at least 0, got {schedule.start:g} and {schedule.end:g}")
    return schedule


NonNegativeOrSchedule = Annotated[
    Annotated[float, Field(ge=0), Tag(NUMBER_TAG)]
    | Annotated[ValueSchedule, AfterValidator(_check_not_negative), Tag(SCHEDULE_TAG)],
    Discriminator(_form_of),
]
"""A number of at least 0, or a schedule between two of them."""


class EncoderSection(Section):
    """Any timm backbone and a projection head."""

    backbone: str = Field(description="the name of a timm model, e.g. resnet50 or vit_small_patch16_224")
    pretrained: bool = Field(False, description="start from timm's weights, which are downloaded once")
    weights: str | None = Field(
        None,
        description="checkpoint with the backbone's weights: FILE or FILE:PART, a folder, hf-hub:NAME or package:NAME",
    )
    stem: Literal["timm", "small"] = Field("timm", description="small: stride 1, no pooling, for images of 28-64 px")
    head_layers: int = Field(2, ge=0, le=8, description="0: the loss sees the features")
    head_width: int | None = Field(None, ge=1, description="hidden layers; unset: as wide as the features")
    head_out: int = Field(128, ge=1, description="width of the embeddings that the loss sees")
    head_norm: bool = Field(False, description="BatchNorm after each linear layer but the last")
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth of the backbone; 0: timm's default")
    freeze: int | str = Field(
        "none", description="none, stem, n: the stem and n stages or blocks, or all: the whole backbone; not trained"
    )
    freeze_batchnorm: bool = Field(
        False, description="BatchNorm of the backbone as it is: fixed statistics and weights"
    )
    lora_rank: int = Field(0, ge=0, le=1024, description="train low-rank updates instead of the backbone; 0: no LoRA")
    lora_alpha: float = Field(16.0, gt=0, description="the updates are multiplied by lora_alpha / lora_rank")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the updates")
    lora_layers: tuple[str, ...] = Field(
        ("qkv", "proj"), description="linear layers with an update, by their last names"
    )

    @field_validator("freeze", mode="plain")
    @classmethod
    def _check_freeze(cls, value: Any) -> int | str:
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if is_count or value in ("none", "stem", "all"):
            return value
        raise ValueError("must be 'none', 'stem', 'all' or a number of stages or blocks of at least 1")

    @property
    def is_partly_trained(self) -> bool:
        """Whether some of the backbone's weights are not trained."""
        return self.freeze != "none" or self.freeze_batchnorm or self.lora_rank > 0

    @property
    def architecture(self) -> Table:
        """What the encoder is, without what is trained of it."""
        return self.model_dump(exclude=set(ADAPTATION_KEYS))


class OptimSection(Section):
    """An optimizer of timm's factory, and the schedule of its learning rate."""

    name: str = Field("sgd", description="as timm calls it, e.g. sgd, adamw, lars")
    lr: float = Field(gt=0, description="as used, for the recipe's batch size: nothing scales it")
    weight_decay: NonNegativeOrSchedule = Field(1e-4, description="a number, or a table {start, end, schedule, epochs}")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD and LARS; beta1 elsewhere is the optimizer's default")
    decay_all: bool = Field(False, description="true: weight decay on norms and biases too")
    schedule: Literal["cosine", "constant", "multistep"] = Field(
        "cosine", description="how the learning rate goes on after the warm-up"
    )
    milestones: tuple[Share, ...] = Field(
        (), description="multistep: shares of the run after which the learning rate is multiplied by gamma"
    )
    gamma: float = Field(0.1, gt=0, le=1, description="multistep: the factor at each milestone")
    warmup_epochs: float = Field(0.0, ge=0, description="in which the learning rate rises; below train.epochs")
    warmup_lr: float = Field(0.0, ge=0, description="from which the warm-up rises; its last step has lr")
    final_lr_ratio: float = Field(1e-3, ge=0, le=1, description="the last step of the cosine has lr times this")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="the learning rate of each layer of the backbone is that of the next times this"
    )


class SamplerSection(Section):
    """Which images a batch consists of."""

    name: Literal["random", "pk", "class_balanced", "square_root", "positives"] = Field(
        "random",
        description="pk: P classes x K images; class_balanced: all classes equally often; square_root: as often as the square "
        "root of their sizes; positives: every labeled image with another one of its class",
    )
    images_per_class: int | None = Field(
        None, ge=2, description="K of pk; unset: the smallest from 4 on that the classes allow"
    )
    labeled_per_batch: int | None = Field(
        None, ge=1, description="labeled images of a batch, where others have no label; unset: their share of the data"
    )
    hard_negatives: bool = Field(
        False,
        description="pk: every second class of a batch is that of a near neighbor of the class before, by the encoder after "
        "the last epoch",
    )

    @model_validator(mode="after")
    def _check_hard_negatives(self) -> Self:
        if self.hard_negatives and self.name != "pk":
            raise ValueError(
                f"hard_negatives=true chooses the classes of name = 'pk', and the name is {self.name!r}; set "
                "train.sampler.name=pk, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _check_images_per_class(self) -> Self:
        if self.images_per_class is not None and self.name != "pk":
            raise ValueError(
                f"images_per_class={self.images_per_class} is that of name = 'pk', and the name is {self.name!r}; set "
                "train.sampler.name=pk, or leave it out"
            )
        return self


class TrainSection(Section):
    """The length of the training, its batches, its device, and what is written."""

    epochs: int = Field(ge=1, description="passes over the training images")
    batch_size: int = Field(ge=2, description="images of all ranks")
    sampler: SamplerSection = Field(SamplerSection(), description="which images a batch consists of")
    micro_batch_size: int | None = Field(
        None, ge=1, description="images of all ranks encoded at once; the gradient stays that of the batch (GradCache)"
    )
    micro_batch_norm: Literal["refuse", "freeze", "approximate"] = Field(
        "refuse", description="BatchNorm in micro-batches: an error; running statistics; each its own statistics"
    )
    precision: Literal["fp32", "bf16", "fp16", "auto"] = Field(
        "fp32", description="of the encoder; auto: bf16 where the device multiplies it, fp16 on older GPUs, else fp32"
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto, cpu, cuda, cuda:N or mps; auto: a GPU if there is one",
    )
    workers: int = Field(0, ge=0, description="threads per rank that decode ahead; 0: decode when asked")
    channels_last: bool = Field(True, description="memory format of images and convolutions")
    compile: bool = Field(False, description="torch.compile for the backbone and the views")
    clip_norm: float = Field(0.0, ge=0, description="largest gradient norm; 0: no clipping")
    grad_checkpointing: bool = Field(False, description="compute activations again in the backward pass: less memory")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="of a moving average of the encoder's weights; 0: none")
    evaluated_weights: Literal["trained", "ema"] = Field(
        "trained", description="which of the two is evaluated and becomes model/"
    )
    sync_batchnorm: bool = Field(False, description="statistics of BatchNorm over all ranks")
    log_every_steps: int = Field(10, ge=1, description="a row of metrics.jsonl every so many steps")
    checkpoint_every_epochs: int = Field(1, ge=0, description="0: none by epochs; the last step is saved in any case")
    checkpoint_every_steps: int = Field(0, ge=0, description="0: none by steps")
    checkpoint_every_minutes: float = Field(10.0, ge=0, description="0: none by time")
    keep_checkpoints: int = Field(2, ge=1, description="how many of the last ones remain")
    keep_best: bool = Field(
        False, description="keep the one with the best headline number, too (eval.NAME.every_epochs)"
    )
    early_stopping_epochs: int = Field(
        0,
        ge=0,
        description="stop when the headline number has not risen for so many epochs (eval.NAME.every_epochs); 0: never",
    )
    final_weights: Annotated[Literal["auto", "last", "best"], BeforeValidator(_with_new_name)] = Field(
        "auto",
        description="what is evaluated and exported. last: the weights after the last step; best: of the best evaluation; "
        "auto: the last, with early stopping the best, and pretrained ones as they were if training made them worse",
    )
    check_files: Literal["stat", "content", "off"] = Field(
        "stat", description="what a resumed run compares of its files: size and time, SHA-256, or nothing"
    )
    rank_timeout_seconds: float = Field(300.0, gt=0, description="a rank that does not answer for so long ends the run")
    max_omitted_steps: int = Field(
        0, ge=0, description="steps of NaN or infinity to leave out, each after going back to the last checkpoint"
    )
    baselines: bool = Field(True, description="evaluate raw pixels and the encoder before training as well")
    report: bool = Field(True, description="end in report.html, one page to look at and to send")
    trackers: TrackerNames | None = Field(
        None, description="services that draw the curves, e.g. tensorboard; unset: those with a table [trackers.NAME]"
    )


class Expect(Section):
    """A result measured with exactly this recipe, and where."""

    metric: str = Field(description="name of the metric, e.g. knn@20")
    value: float = Field(description="of the trained encoder, as a share")
    untrained: float | None = Field(None, description="of the encoder before training")
    pixels: float | None = Field(None, description="of the raw pixels")
    tolerance: float | None = Field(
        None, ge=0, le=1, description="how far the value of another run may differ, as a share; unset: reptk verify's"
    )
    epochs: int = Field(description="of the run")
    train_seconds: float | None = Field(None, description="of an otherwise idle machine")
    hardware: str = Field(description="where it ran")
    versions: str = Field(description="of Python and the packages")
    commit: str = Field(description="of reptk")


class Recipe(Section):
    """Everything that a run needs. A part is a flat table `{name, ...arguments}`, complete with its defaults."""

    name: str = Field("recipe", pattern=r"^[\w+-][\w.+-]*$", description="unset in a file: the file's name")
    seed: int = Field(0, ge=0, description="of everything random: weights, order of images, views")
    plugins: tuple[str, ...] = Field(
        (), description="files in the folder of the recipe, or modules, that register parts; see --plugin and --trust"
    )
    overrides: tuple[str, ...] = Field(
        (), description="key=value pairs that changed the named recipe; load() writes them"
    )
    start: StartSection | None = Field(None, description="only of stages, which start from a run")
    data: Table
    views: Table
    encoder: EncoderSection
    method: Table
    loss: Table | None = Field(None, description="only where the method takes one")
    optim: OptimSection
    train: TrainSection
    eval: dict[str, Table] = Field({}, description="evaluators by key; none named: kNN")
    trackers: dict[str, Table] = Field({}, description="arguments of trackers by name; see train.trackers")
    expect: Expect | None = None

    @property
    def title(self) -> str:
        """The recipe's name and what overrides changed; see `title_of`."""
        return title_of(self.name, self.overrides)

    @property
    def active_trackers(self) -> dict[str, Table]:
        """The arguments of the trackers that the run uses, by name."""
        names = self.train.trackers
        if names is None:
            return self.trackers
        return {name: self.trackers[name] for name in names}

    def dump(self) -> str:
        """Return the recipe as TOML, with every default written out; reading it back gives the same recipe."""
        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))


def title_of(name: str, overrides: Sequence[str]) -> str:
    """Return what a run is called in messages and reports, e.g. `supcon_digits loss.name=tcl`.

    Overrides that replace a part come first. Those that do not change the results are left out, and so are those beyond
    `MAX_TITLE_OVERRIDES`, whose number is stated.
    """
    replacements = part_replacements(overrides)
    changes = []
    for pair in overrides:
        is_untitled = is_among(pair.partition("=")[0], UNTITLED_KEYS)
        if not is_untitled and pair not in replacements:
            changes.append(pair)
    words = [name, *replacements, *changes]
    more = len(words) - 1 - MAX_TITLE_OVERRIDES
    if more > 0:
        words = [*words[: MAX_TITLE_OVERRIDES + 1], f"and {more} more"]
    return " ".join(words)


def part_replacements(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that replace a part or the backbone, e.g. `loss.name=tcl`."""
    return [pair for pair in overrides if pair.partition("=")[0] in PART_NAMES]


class RecipeError(UsageError):
    """A recipe that does not validate; the message lists every problem, a line each."""

    def __init__(self, name: str, problems: Sequence[Problem]) -> None:
        width = max(len(key) for key, _ in problems)
        lines = [f"  {key:<{width}}  {message}" for key, message in problems]
        super().__init__(f"{name} does not validate\n" + "\n".join(lines))
        self.name = name
        self.problems = list(problems)

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors of rank 0 are sent to the other ranks. By default, unpickling would call this class with the message alone.
        return RecipeError, (self.name, self.problems)


def _without_none(value: Any) -> Any:
    """Leave out keys without a value, since TOML has no null; reading the rest back applies their defaults."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_none(inner) for inner in value]
    return value
