"""The parts of a function's ARN."""

from __future__ import annotations

from functions.greengrass.arns import ARN


class FunctionArnFields:
    """A function's ARN, with or without its qualifier; or the Id that a deployment on this core gives it.

    Raises:
        ValueError: it begins like an ARN, and is none of a function.
    """

    def __init__(self, function_arn_string: str) -> None:
        match = ARN.fullmatch(function_arn_string)
        if match is None and (function_arn_string.startswith("arn:") or not function_arn_string):
            raise ValueError(f"not the ARN of a Lambda function: {function_arn_string!r}")
        self.arn_string = function_arn_string
        self.region = match["region"] if match else ""
        self.account_id = match["account"] if match else ""
        self.name = match["name"] if match else function_arn_string
        self.qualifier = (match["qualifier"] or "") if match else ""
        self.unqualified_arn = (
            function_arn_string[: -len(self.qualifier) - 1] if self.qualifier else function_arn_string
        )

    @staticmethod
    def build_function_arn(unqualified_arn: str, qualifier: str | None) -> str:
        """The ARN with its qualifier, if there is one."""
        return f"{unqualified_arn}:{qualifier}" if qualifier else unqualified_arn
