"""Which replica holds a clip: a matter of its id alone, so that nobody has to be told or asked."""

import hashlib
from collections.abc import Iterable

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


def home(clip: str, replicas: Iterable[str]) -> str:
    """The replica a clip belongs to: the one whose name, hashed with its id, gives the highest number (Thaler and
    Ravishankar 1998). When one goes, only its own clips move; a new one takes an equal share from each."""
    return max(replicas, key=lambda name: hashlib.blake2b(f"{clip} {name}".encode(), digest_size=8).digest())


class ByClip(RequestRouter):
    """Requests about a clip, whose id is their multiplexed model id, go to its home and wait for it; others go where
    there is room.

    Ray Serve's own router goes by what replicas have reported of late, and past a replica that is busy: a question
    that follows its video closely would reach one that has never seen it.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        clip = pending_request.metadata.multiplexed_model_id if pending_request else ""
        if not clip:
            return [candidate_replicas]
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        return [[by_name[home(clip, by_name)]]]

    def _remove_pending_request_from_indices(self, pending_request: PendingRequest) -> None:
        """Also from the index by clip, which Serve cleans for its own routers alone: it would keep all that was ever
        asked."""
        super()._remove_pending_request_from_indices(pending_request)
        self._pending_requests_by_model_id.pop(pending_request.metadata.multiplexed_model_id, None)
