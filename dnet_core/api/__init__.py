"""The OpenAI-compatible endpoint: HTTP outside, the coordinator's public methods inside.

    app.py                      `endpoint`: the routes, and the border where errors become replies
    auth.py turns.py            who may ask, and whose turn it is
    reading.py openai.py        a request's body, checked; responses_request.py for /v1/responses
    prompts.py formats.py       messages and tools -> tokens; how the loaded model writes its answers
    answers.py                  sessions of the ring -> steps, for any kind of reply
    output.py harmony.py        an answer's text -> reasoning, content, calls (tool_parsers.py reads them)
    chat.py completions.py      steps -> completions, whole or streamed
    responses.py runs.py        steps -> responses that are kept (response_writer.py tells their events)
    text.py models.py cluster.py metrics.py     the smaller routes

Both `dnet-api` and `dnet-tui` start and stop the same endpoint on a coordinator that they own.
"""
