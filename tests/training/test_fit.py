"""What ends a run at once and what does not, by what Ray Train's controller is told."""

from __future__ import annotations

import pytest
from ray.train import ControllerError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus

from stetholm.job import find_user_error
from stetholm.storage.paths import StorageError
from stetholm.training.fit import EndOnUserError


def status(*errors: Exception | None) -> WorkerGroupPollStatus:
    wrapped = [UserExceptionWithTraceback(error, "…") if error is not None else None for error in errors]
    return WorkerGroupPollStatus({rank: WorkerStatus(running=True, error=error) for rank, error in enumerate(wrapped)})


def test_what_is_the_users_to_mend_ends_the_run() -> None:
    """Also where it is not the cause that comes first: other ranks fail because one has."""
    with pytest.raises(ControllerError) as caught:
        EndOnUserError().after_worker_group_poll_status(
            status(RuntimeError("connection closed by peer"), StorageError("storage: it did not answer"))
        )
    assert str(find_user_error(caught.value)) == "storage: it did not answer"


def test_other_failures_are_left_to_ray_train() -> None:
    told = status(RuntimeError("connection closed by peer"), None)
    EndOnUserError().after_worker_group_poll_status(told)
    assert set(told.errors) == {0}  # it still finds the failure there
