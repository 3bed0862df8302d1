"""What a user says of a run in W&B."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class WandbOptions:
    """What a run says of itself in W&B; None leaves it to W&B's environment.

    Args:
        entity: User or team of the run; None: WANDB_ENTITY, or the account's default.
        group: Runs that belong together; None: WANDB_RUN_GROUP.
        tags: A list, or words between commas; None: WANDB_TAGS.
        notes: What W&B shows beside the run; None: WANDB_NOTES.
        job_type: Kind of the run, such as train; None: WANDB_JOB_TYPE.
        register: Collection of W&B's registry that gets the best network: NAME, or PROJECT/NAME.
    """

    entity: str | None = None
    group: str | None = None
    tags: list[str] | str | None = None
    notes: str | None = None
    job_type: str | None = None
    register: str | None = None

    def of_run(self) -> dict[str, Any]:
        """Arguments of ``wandb.init``."""
        tags = self.tags.split(",") if isinstance(self.tags, str) else self.tags
        return {
            **{name: getattr(self, name) for name in ("entity", "group", "notes", "job_type")},
            "tags": tags and [tag.strip() for tag in tags if tag.strip()],
        }
