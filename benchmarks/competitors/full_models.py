"""One full model per task behind FastAPI, as it is commonly built: transformers' own classes, a route with the task's name in its path.

Runs in the environment `transformers`, not in Turret's. One process holds all models that it is given; one process per task is several of
these. A text is tokenized and run by itself, on `--workers` threads of the pool with `--threads` torch threads each; with `--batch` the
texts that wait for a task are run together (at most so many, padded to the longest), which is more than the common service does.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI
from fastapi.responses import Response
from orjson import OPT_SERIALIZE_NUMPY, dumps
from pydantic import BaseModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

Waiting = tuple[str, asyncio.Future[object]]


class Inputs(BaseModel):
    """A text to classify."""

    inputs: str


class Task:
    """One model and its tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32).eval()
        self.waiting: asyncio.Queue[Waiting] = asyncio.Queue()

    def logits(self, texts: list[str]) -> object:
        """[texts, labels]"""
        with torch.inference_mode():
            return self.model(**self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")).logits.numpy()


async def batching(task: Task, most: int, run: Callable[[Task, list[str]], asyncio.Future[object]]) -> None:
    """Runs what waits for a task together, batch after batch."""
    while True:
        batch = [await task.waiting.get()]
        while len(batch) < most and not task.waiting.empty():
            batch.append(task.waiting.get_nowait())
        try:
            logits = await run(task, [text for text, _ in batch])
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)
            continue
        for (_, future), row in zip(batch, logits, strict=True):  # type: ignore[call-overload]
            if not future.done():
                future.set_result(row)


def create_app(folders: list[Path], workers: int, batch: int) -> FastAPI:
    """The service of these models."""
    tasks = {folder.name: Task(folder) for folder in folders}
    pool = ThreadPoolExecutor(workers)

    def run(task: Task, texts: list[str]) -> asyncio.Future[object]:
        return asyncio.get_running_loop().run_in_executor(pool, task.logits, texts)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running = [asyncio.create_task(batching(task, batch, run)) for task in tasks.values()] if batch else []
        yield
        for one in running:
            one.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.post("/predict/{name}")
    async def predict(name: str, body: Inputs) -> Response:
        task = tasks[name]
        if batch:
            future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            task.waiting.put_nowait((body.inputs, future))
            logits = await future
        else:
            logits = (await run(task, [body.inputs]))[0]  # type: ignore[index]
        return Response(dumps({"logits": logits}, option=OPT_SERIALIZE_NUMPY), media_type="application/json")

    return app


def main() -> None:
    """Serves the models in the folders on the loopback."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    app = partial(create_app, options.folders, options.workers, options.batch)
    uvicorn.run(app, factory=True, host="127.0.0.1", port=options.port, access_log=False, log_level="warning", timeout_keep_alive=600)


if __name__ == "__main__":
    main()
