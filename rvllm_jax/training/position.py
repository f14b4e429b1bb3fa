"""Where a run is."""

import dataclasses


@dataclasses.dataclass
class Position:
    """Where a run is; saved with every checkpoint as JSON."""

    stage: int = 0  # number of the stage in the recipe
    k: int = 0  # updates done of the stage = number of its next batch
    done: int = 0  # updates done of all stages
    skipped: int = 0  # updates in a row that were not finite
    skipped_stage: int = 0  # of the stage: its learning rate goes on without them
    skipped_all: int = 0
    bad_rows: int = 0  # rows emptied because their record could not be read
    unreadable: dict[str, int] = dataclasses.field(default_factory=dict)  # of the stage, by video
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # training, by stage
    best: dict[str, float] = dataclasses.field(default_factory=dict)  # validation loss, by stage
