"""The OpenAI-compatible endpoint: HTTP outside, the coordinator's public methods inside.

    app.py       `endpoint`: bind, serve, the routes and the border where errors become replies
    openai.py    what a request may hold
    chat.py      messages -> prompt -> answer, plain and streamed

Both `dnet-api` and `dnet-tui` start and stop the same endpoint on a coordinator that they own.
"""
