"""The floor of an answer over HTTP: a FastAPI route that returns a constant, under the settings of `loratree serve`."""

import uvicorn
from fastapi import FastAPI

from loratree_registry.api.serve import configure, listen


def create_app() -> FastAPI:
    """The application."""
    app = FastAPI()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "version": "0.0.0"}

    return app


def main() -> None:
    """Serves on a free port, and prints the URL as `loratree serve` does."""
    with listen("127.0.0.1", 0) as listening:
        print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        uvicorn.Server(configure(create_app)).run(sockets=[listening])


if __name__ == "__main__":
    main()
