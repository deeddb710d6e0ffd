"""/v1/responses: answers that are kept, told as items and events, and that may outlive their request.

Every response runs in a task of the endpoint. One that its client waits for is stopped when that client goes;
one in the background is not.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response

from dnet_core.api import sse
from dnet_core.api.answers import Question, answers, questions
from dnet_core.api.bound import chat_grammar
from dnet_core.api.errors import ApiError, reply_for
from dnet_core.api.prompts import chat_prompt
from dnet_core.api.reading import read
from dnet_core.api.response_writer import JsonDict, ResponseWriter
from dnet_core.api.responses_request import ResponsesRequest, messages_of
from dnet_core.api.runs import Run
from dnet_core.api.service import ServedModel, Service
from dnet_core.api.steps import Usage


async def create(service: Service, request: Request) -> Response:
    body = await read(request, ResponsesRequest)
    model = service.model(body.model)
    model.check_tokens(body.logit_bias, "logit_bias")
    messages = [*_earlier(service, body.previous_response_id), *messages_of(body.input)]
    asked = await _question(model, body, messages)
    service.turns.check_room()
    run = Run(ResponseWriter(_repeated(model, body)), messages, Usage(len(asked.tokens)))
    if body.store:
        service.runs.add(run)
    note = service.failure_note(request)
    client = service.client(request, body.asker)

    def start() -> None:
        run.start(service.tasks, _work(service, client, run, asked, note))

    if body.background:
        start()
        return service.stream(request, _told(run)) if body.stream else sse.reply(run.writer.response())
    if body.stream:
        return service.stream(request, _attended(run, start))
    async with service.attended(request), aclosing(_attended(run, start)) as events:
        async for _ in events:
            pass
    if run.failure is not None:
        service.runs.remove(run)
        raise run.failure
    return sse.reply(run.writer.response())


async def retrieve(service: Service, request: Request) -> Response:
    """The response as it is now; with `stream=true` its events after number `starting_after`."""
    run = service.runs.get(request.path_params["response"])
    if request.query_params.get("stream") != "true":
        return sse.reply(run.writer.response())
    after = request.query_params.get("starting_after", "-1")
    if not after.removeprefix("-").isdecimal() or len(after) > 9:
        raise ApiError(400, "'starting_after' must be a number", param="starting_after", code="invalid_value")
    return service.stream(request, _told(run, max(int(after), -1)))


async def cancel(service: Service, request: Request) -> Response:
    """Stop a response that runs; returns what there is of it."""
    run = service.runs.get(request.path_params["response"])
    run.stop()
    async with aclosing(run.follow()) as events:
        async for _ in events:
            pass
    return sse.reply(run.writer.response())


async def delete(service: Service, request: Request) -> Response:
    run = service.runs.get(request.path_params["response"])
    run.stop()
    service.runs.remove(run)
    return sse.reply({"id": run.writer.id, "object": "response", "deleted": True})


async def _work(
    service: Service, client: str, run: Run, asked: Question, note: Callable[[ApiError], None]
) -> None:
    """Write the response; a failure becomes its end, never the task's."""
    writer, usage = run.writer, run.usage
    run.tell(writer.begin())
    try:
        async with aclosing(answers(service, client, [asked], usage)) as steps:
            async for step in steps:
                run.tell(writer.add(step))
                if step.finish is not None:
                    run.tell(writer.finish(step.finish, usage))
    except Exception as error:  # noqa: BLE001 - the border: nobody else waits for this task
        run.failure = reply_for(error, f"response {writer.id}")
        note(run.failure)
        run.tell(writer.fail(run.failure, usage))


async def _attended(run: Run, start: Callable[[], None]) -> AsyncGenerator[bytes, None]:
    """Run while somebody listens."""
    start()
    try:
        async with aclosing(_told(run)) as events:
            async for event in events:
                yield event
    finally:
        run.stop()


async def _told(run: Run, after: int = -1) -> AsyncGenerator[bytes, None]:
    async with aclosing(run.follow(after)) as events:
        async for event in events:
            yield f"event: {event['type']}\n".encode() + sse.data(event)


def _earlier(service: Service, name: str | None) -> list[JsonDict]:
    """The conversation that the response `name` ends with."""
    if name is None:
        return []
    run = service.runs.get(name, "previous_response_id")
    if not run.is_done:
        message = f"response '{name}' is still running"
        raise ApiError(400, message, param="previous_response_id", code="invalid_value")
    return [*run.messages, *messages_of(run.writer.output_items())]


async def _question(model: ServedModel, body: ResponsesRequest, messages: list[JsonDict]) -> Question:
    instructions = body.instructions
    system: list[JsonDict] = [{"role": "system", "content": instructions}] if instructions else []
    wanted, calls = body.wanted, body.call_rule
    prompt = chat_prompt(
        model,
        [*system, *messages],
        body.callable_tools,
        body.chat_template_kwargs,
        body.reasoning.effort,
        param="input",
        bound=calls if calls.binds or wanted is not None else None,
    )
    grammar = await chat_grammar(model.tokenizer, prompt, wanted, calls)
    logprobs = body.top_logprobs if body.wants_logprobs else None
    limit = body.max_output_tokens
    (asked,) = questions(prompt, body, limit, logprobs, grammar=grammar, one_call_only=not calls.many)
    return asked


def _repeated(model: ServedModel, body: ResponsesRequest) -> JsonDict:
    """The fields of a response that repeat its request."""
    return {
        "background": body.background,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": model.name,
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": body.reasoning.effort, "summary": None},
        "service_tier": "default",
        "store": body.store,
        "temperature": body.temperature,
        "text": {"format": body.told_format, "verbosity": "medium"},
        "tool_choice": body.told_tool_choice,
        "tools": [tool.told() for tool in body.tools],
        "top_logprobs": body.top_logprobs,
        "top_p": body.top_p,
        "truncation": body.truncation,
        "user": body.user,
    }
