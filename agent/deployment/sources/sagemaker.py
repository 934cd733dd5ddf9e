"""What SageMaker training jobs made: DescribeTrainingJob, in the region of the job's ARN, says where in S3 it lies.

What the policy allows is the job's ARN; the place is the job's own. A job that has not completed gives nothing.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import botocore.exceptions as errors

from agent.deployment.sources import Stream, aws
from agent.deployment.sources.s3 import S3Archive
from agent.errors import AgentError, RejectedError

STALL_S: Final = 20.0
RUNNING: Final = ("InProgress", "Stopping")


class SageMakerArchive:
    """What a training job made.

    Args:
        arn: ``arn:aws:sagemaker:REGION:ACCOUNT:training-job/NAME``, of the right shape.
        stall_s: see `S3Archive`.
    """

    def __init__(self, arn: str, stall_s: float) -> None:
        self.name = arn
        self._stall_s = stall_s
        self._region = arn.split(":")[3]
        self._artefact: S3Archive | None = None

    def open(self, start: int, etag: str | None, known: str | None) -> Stream | None:
        """See `ArchiveSource.open`; a DescribeTrainingJob before the first GetObject."""
        if self._artefact is None:
            self._artefact = S3Archive(self._place(), self._stall_s, self._region)
        return self._artefact.open(start, etag, known)

    def _place(self) -> str:
        """Where the job's artefact lies, ``s3://..``."""
        try:
            job = _client(self._region).describe_training_job(TrainingJobName=self.name.rpartition("/")[2])
        except errors.ClientError as error:
            raise self._refusal(error) from error
        except (errors.BotoCoreError, ValueError, OSError) as error:
            raise aws.failure(self.name, error) from error
        status = str(job.get("TrainingJobStatus", ""))
        if status in RUNNING:
            text = f"the training job {self.name} has not ended yet (it is {status})"
            raise RejectedError("TRAINING_JOB_UNFINISHED", text, "Deploy again when it has completed.")
        if status != "Completed":
            why = str(job.get("FailureReason") or "it gives no reason")[:300]
            text = f"the training job {self.name} ended as {status}: {why}"
            raise RejectedError("TRAINING_JOB_FAILED", text, "Name a job that has completed.")
        place = str((job.get("ModelArtifacts") or {}).get("S3ModelArtifacts") or "")
        if not place.startswith("s3://") or not place.removeprefix("s3://").partition("/")[2]:
            text = f"the training job {self.name} has left no model artefact"
            raise RejectedError("TRAINING_JOB_EMPTY", text, "Name a job that makes one, or an artefact's S3Uri.")
        return place

    def _refusal(self, error: errors.ClientError) -> AgentError:
        code, text = aws.code_of(error), aws.text_of(error)
        if common := aws.common_refusal(self.name, error):
            return common
        if code in ("ValidationException", "ResourceNotFound", "ResourceNotFoundException"):
            text = f"there is no training job {self.name} ({text})"
            return RejectedError("SOURCE_NOT_FOUND", text, "Check the SageMakerJobArn, its region and account.")
        if aws.status_of(error) in (401, 403) or code.startswith("AccessDenied"):
            return aws.denied(self.name, text, "sagemaker:DescribeTrainingJob", self.name)
        remedy = "Check the SageMakerJobArn and AWS_ENDPOINT_URL_SAGEMAKER."
        return RejectedError("SOURCE_REFUSED", f"{self.name}: the server answered {code} ({text})", remedy)


@cache
def _client(region: str) -> Any:
    return aws.session().client("sagemaker", region_name=region, config=aws.config(STALL_S))
