"""Whatever workers do, in whatever order: what the client sees is a right beginning of the answer, once."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from .test_flow import ANSWER, World, epoch_of


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_workers_do_the_client_sees_each_token_once_in_order(data: st.DataObject) -> None:
    """Any interleaving of tokens, repeats, gaps, deaths and failures ends in a right prefix, and once."""

    async def run() -> None:
        world = World(path="remote", max_replays=100)
        world.join("p0", "prefill")
        world.join("d0", "decode")
        num_choices = data.draw(st.integers(1, 2))
        running = world.begin(n=num_choices)
        count = 1
        for _ in range(data.draw(st.integers(0, 60))):
            if running.is_over:
                break
            act = data.draw(st.sampled_from(["next", "next", "next", "repeat", "skip", "stale", "die", "fail", "join"]))
            live = list(world.pool.workers.values())
            if act == "join" or not live:
                count += 1
                world.join(f"w{count}", *data.draw(st.sampled_from([("prefill",), ("decode",)])))
                continue
            worker = data.draw(st.sampled_from(live))
            choice = data.draw(st.integers(0, num_choices - 1))
            known = len(world.heard.tokens.get(choice, []))
            if act == "next":
                world.say(worker, running, min(known, len(ANSWER) - 1), choice=choice)
            elif act == "repeat" and known:
                world.say(worker, running, data.draw(st.integers(0, known - 1)), choice=choice, finish_reason=None)
            elif act == "skip":
                world.say(worker, running, min(known + 1, len(ANSWER) - 1), choice=choice)
            elif act == "stale":
                world.say(worker, running, min(known, 7), epoch=epoch_of(running) - 1, token_id=399)
            elif act == "die":
                world.pool.lose(worker, "test")
            elif act == "fail":
                world.end(worker, running, "internal")
        heard = [world.heard.tokens.get(choice, []) for choice in range(num_choices)]
        assert all(tokens == ANSWER[: len(tokens)] for tokens in heard)
        assert world.heard.is_ended == all(len(tokens) == len(ANSWER) for tokens in heard)
        running.cancel()
        world.check_nothing_is_left()
        await world.pool.close()

    asyncio.run(run())
