"""What is known of a named data set: its files, where they come from, and the columns of its task."""

from collections.abc import Mapping
from dataclasses import dataclass, field

SPLITS = ("train", "validation", "test")

COLUMNS: dict[str, tuple[str, ...]] = {
    "articles": ("title", "text"),
    "classification": ("text", "label"),
    "tagging": ("tokens", "tags"),
    "question_answering": ("id", "title", "context", "question", "answers", "answer_starts"),
    "translation": ("source", "target"),
    "summarization": ("text", "summary"),
    "dialogue": ("turns",),
}
"""Columns that every data set of a task has; some have more of their own (`DatasetInfo.more_columns`)."""

# Rows that agree in one of these columns are never put into different splits.
IDENTITY: dict[str, tuple[str, ...]] = {
    "articles": ("text",),
    "classification": ("text",),
    "tagging": ("tokens",),
    "question_answering": ("context",),
    "translation": ("source", "target"),
    "summarization": ("text",),
    "dialogue": ("turns",),
}


@dataclass(frozen=True)
class Origin:
    """An address that a file can be downloaded from.

    Attributes:
        urls: Normally one address. Several are the parts of a file that `build` makes of them.
        member: The file's name inside the zip or tar at the address; empty where the address is the file itself.
        build: How the file is made of several parts: `"dialogues"`.
        evidence: How it was checked that the address holds the very file, in a word that `dataset_registry.evidence`
            explains: it was not opened, for want of a network. Empty where it could not be checked.
    """

    urls: tuple[str, ...]
    member: str = ""
    build: str = ""
    evidence: str = ""


@dataclass(frozen=True)
class DataFile:
    """A file of a data set.

    Attributes:
        path: Relative to the folders it is looked for in; `*` stands for the shards of a file in many.
        sha256: Of its content (of shards: of their contents one after another); empty where not known.
        size: Bytes; None where not known.
        git_blob: SHA-1 that git gives the content, known from a repository's tree where SHA-256 is not.
        origin: Where to download it; None where it is published nowhere in this form.
        twin: The same content packed in another way, which will do as well.
    """

    path: str
    sha256: str = ""
    size: int | None = None
    git_blob: str = ""
    origin: Origin | None = None
    twin: "DataFile | None" = None

    @property
    def checksum(self) -> str:
        """What is known to check a download with, for a table."""
        known = [name for name, value in (("SHA-256", self.sha256), ("git SHA-1", self.git_blob)) if value]
        return known[0] if known else "none"


@dataclass(frozen=True)
class DatasetInfo:
    """A named data set.

    Attributes:
        name: What `load_dataset` takes.
        title: One line: what it is.
        task: A key of `COLUMNS`.
        language: "en", "zh-Hans" (simplified), "zh-Hant" (traditional) or "zh" (both); of translations two.
        licence: Short name or terms; the rights of those who wrote the texts are theirs.
        homepage: Where to read more.
        files: Files of each split, or under "all" those that are split here.
        reader: Name of the function that reads the files.
        labels: Names of the classes in the order of their numbers, or the types of entities.
        more_columns: Columns beside those of the task.
        group_by: A column whose rows stay together when the data set is split here.
        package: A Python package that the file ships in.
        notes: What one should know before using it.
    """

    name: str
    title: str
    task: str
    language: str
    licence: str
    homepage: str
    files: Mapping[str, tuple[DataFile, ...]]
    reader: str
    labels: tuple[str, ...] = ()
    more_columns: tuple[str, ...] = ()
    group_by: str = ""
    package: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def official(self) -> bool:
        """Whether the splits are those of the origin; otherwise they are made here, by a hash with a fixed seed."""
        return "all" not in self.files

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in the order train, validation, test."""
        return tuple(name for name in SPLITS if name in self.files) if self.official else SPLITS

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of a frame."""
        return COLUMNS[self.task] + self.more_columns

    @property
    def identity(self) -> tuple[str, ...]:
        """Columns in which rows of different splits never agree."""
        return IDENTITY[self.task] + ((self.group_by,) if self.group_by and not self.official else ())

    @property
    def origin_checked(self) -> str:
        """How the origins of the files were checked, in a few words."""
        if self.package:
            return f"in the package {self.package}"
        origins = [file.origin for files in self.files.values() for file in files]
        return ", ".join(sorted({(origin.evidence or "not checked") if origin else "no origin" for origin in origins}))

    def files_of(self, split: str) -> tuple[DataFile, ...]:
        """The files that a split is read from."""
        return self.files[split if self.official else "all"]

    def __str__(self) -> str:
        splits = ", ".join(self.splits) + (" (of the origin)" if self.official else " (made here, by a hash)")
        rows = {
            "task": f"{self.task}: {', '.join(self.columns)}",
            "language": self.language,
            "licence": self.licence,
            "homepage": self.homepage,
            "splits": splits,
            "labels": ", ".join(self.labels),
            "origin": self.origin_checked,
            "note": " ".join(self.notes),
        }
        return "\n".join([f"{self.name}: {self.title}", *(f"  {key}: {value}" for key, value in rows.items() if value)])
