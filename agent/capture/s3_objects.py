"""Puts files into any S3: a small one at once, a large one in parts, gone on with where an earlier try ended. Blocks.

What parts the server has is asked of it; which upload they belong to is noted beside the file. Belongs to the
uploader's process, which owns boto3.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import botocore.exceptions as errors

from agent.deployment.sources import aws
from agent.deployment.sources.s3 import client
from agent.errors import AgentError, RejectedError, TransientError

PART_BYTES: Final = 8 * 1024 * 1024  # S3 takes parts from 5 MiB on, 10,000 at most
STALL_S: Final = 30.0
NOTE: Final = ".upload"  # suffix of the note beside a file that is under way
MISSING: Final = ("NoSuchUpload", "404")


def put(file: Path, bucket: str, key: str, content_type: str) -> None:
    """Puts `file` there, over what is there already.

    Raises:
        TransientError: UPLOAD_UNREACHABLE: worth another try.
        RejectedError: UPLOAD_DENIED, UPLOAD_CREDENTIALS, UPLOAD_REFUSED: somebody has to do something first.
        OSError: the file cannot be read.
    """
    name = f"s3://{bucket}/{key}"
    try:
        s3 = client(STALL_S, None)
        if file.stat().st_size <= PART_BYTES:
            s3.put_object(Bucket=bucket, Key=key, Body=file.read_bytes(), ContentType=content_type)
        else:
            _put_in_parts(s3, file, bucket, key, content_type)
    except errors.ClientError as error:
        raise _refusal(name, bucket, error) from error
    except (errors.BotoCoreError, ValueError) as error:
        raise _failure(name, error) from error


def _put_in_parts(s3: Any, file: Path, bucket: str, key: str, content_type: str) -> None:
    place = {"Bucket": bucket, "Key": key}
    note = file.with_name(file.name + NOTE)
    upload, done = _under_way(s3, note, place)
    if upload is None:
        upload = s3.create_multipart_upload(**place, ContentType=content_type)["UploadId"]
        note.write_text(json.dumps({**place, "UploadId": upload}))
    with file.open("rb") as data:
        number = 0
        while True:
            number += 1
            data.seek((number - 1) * PART_BYTES)
            part = data.read(PART_BYTES)
            if not part:
                break
            if done.get(number, ("", -1))[1] != len(part):
                answer = s3.upload_part(**place, UploadId=upload, PartNumber=number, Body=part)
                done[number] = answer["ETag"], len(part)
    parts = [{"PartNumber": each, "ETag": done[each][0]} for each in range(1, number)]
    s3.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts})
    note.unlink(missing_ok=True)


def _under_way(s3: Any, note: Path, place: dict[str, str]) -> tuple[str | None, dict[int, tuple[str, int]]]:
    """The upload that an earlier try began, and its parts by number: (ETag, bytes)."""
    try:
        found = json.loads(note.read_text())
    except (OSError, ValueError):
        return None, {}
    if not isinstance(found, dict) or {**place, "UploadId": found.get("UploadId")} != found:
        return None, {}
    done: dict[int, tuple[str, int]] = {}
    try:
        for page in s3.get_paginator("list_parts").paginate(**found):
            done |= {each["PartNumber"]: (each["ETag"], each["Size"]) for each in page.get("Parts", ())}
    except errors.ClientError as error:
        if aws.code_of(error) in MISSING:  # the bucket's rules ended it meanwhile
            return None, {}
        raise
    return str(found["UploadId"]), done


def _refusal(name: str, bucket: str, error: errors.ClientError) -> AgentError:
    code, status, text = aws.code_of(error), aws.status_of(error), aws.text_of(error)
    if code in aws.WHO:
        return _nobody(name, f"{code}: {text}")
    if status >= 500 or status == 429 or code in aws.WAIT:
        return _unreachable(name, f"the server answered {code} ({text})")
    if status in (401, 403):
        remedy = f'Allow this core\'s identity "s3:PutObject" and "s3:ListMultipartUploadParts" on the bucket {bucket}.'
        return RejectedError("UPLOAD_DENIED", f"{name} may not be written ({text})", remedy)
    remedy = "Check `capture.s3` in topics.yaml, the bucket's region and AWS_ENDPOINT_URL_S3."
    return RejectedError("UPLOAD_REFUSED", f"{name}: the server answered {code} ({text})", remedy)


def _failure(name: str, error: Exception) -> AgentError:
    found = aws.failure(name, error)
    if found.code == "SOURCE_CREDENTIALS":
        return _nobody(name, str(error))
    if isinstance(found, TransientError):
        return _unreachable(name, str(error))
    return RejectedError("UPLOAD_REFUSED", found.message, found.remedy)


def _nobody(name: str, why: str) -> AgentError:
    text = f"{name}: the credentials are missing or not accepted ({why})"
    return RejectedError("UPLOAD_CREDENTIALS", text, "Give the agent's environment valid AWS credentials.")


def _unreachable(name: str, why: str) -> TransientError:
    return TransientError("UPLOAD_UNREACHABLE", f"{name}: {why}", "It is tried again by itself; see the network.")
