# SPDX-License-Identifier: MIT
"""The cffi module built from native/include/uffdswap.h.

Only ``uffdswap._lib`` imports it. cffi's objects have no useful static type, so what comes from
here is untyped by nature; ``_lib`` turns it into annotated Python at once.
"""

from typing import Any

from cffi import FFI

ffi: FFI

class _Lib:
    USW_EVENT_NONE: int
    USW_EVENT_TARGET_ADDED: int
    USW_EVENT_TARGET_GONE: int
    USW_EVENT_TARGET_KILLED: int
    USW_EVENT_NOT_KILLED: int
    USW_EVENT_OUT_OF_MEMORY: int
    USW_EVENT_POISONED: int
    USW_EVENT_WARNING: int
    USW_EVENT_ALONE: int
    USW_EVENT_TIER_EMPTY: int
    USW_EVENT_TIER_REMOVED: int
    USW_EVENT_TIER_KEPT: int
    USW_EVENT_FULL: int
    USW_EVENT_ROOM: int
    USW_EVENT_REQUEST_DONE: int

    USW_TIER_KIND_RAM: int
    USW_TIER_KIND_FOLDER: int
    USW_TIER_KIND_FILE: int
    USW_TIER_KIND_DEVICE: int

    USW_TIER_IS_ACTIVE: int
    USW_TIER_IS_FULL: int
    USW_TIER_IS_FAILING: int
    USW_TIER_IS_LEAVING: int

    USW_ON_FULL_AUTO: int
    USW_ON_FULL_WAIT: int
    USW_ON_FULL_KILL: int

    def usw_probe_run(self, ret: Any, /) -> None: ...
    def usw_session_create(self, config: Any, ret: Any, error: Any, /) -> int: ...
    def usw_session_destroy(self, session: Any, /) -> None: ...
    def usw_session_fds(self, session: Any, fds: Any, capacity: int, /) -> int: ...
    def usw_session_event_fd(self, session: Any, /) -> int: ...
    def usw_session_next_event(self, session: Any, ret: Any, /) -> int: ...
    def usw_session_set_limits(
        self, session: Any, memory_limit_bytes: int, resident_limit_bytes: int, /
    ) -> None: ...
    def usw_session_tier_add(
        self,
        session: Any,
        path: bytes,
        name: Any,
        cap_bytes: int,
        priority: int,
        error: Any,
        /,
    ) -> int: ...
    def usw_session_tier_remove(self, session: Any, name: bytes, error: Any, /) -> int: ...
    def usw_session_tier_list(self, session: Any, ret: Any, capacity: int, /) -> int: ...
    def usw_session_statistics(self, session: Any, ret: Any, /) -> None: ...
    def usw_target_add(
        self,
        session: Any,
        connection: int,
        pidfd: int,
        pid: int,
        hello: Any,
        hello_bytes: int,
        fds: Any,
        fd_count: int,
        error: Any,
        /,
    ) -> int: ...
    def usw_target_fds(self, session: Any, target_id: int, fds: Any, capacity: int, /) -> int: ...
    def usw_session_targets(
        self, session: Any, after_id: int, ret: Any, capacity: int, /
    ) -> int: ...
    def usw_session_reclaim(self, session: Any, target_id: int, pages: int, /) -> int: ...
    def usw_session_park(self, session: Any, target_id: int, /) -> int: ...
    def usw_session_restore(self, session: Any, target_id: int, /) -> int: ...
    def usw_session_result(self, session: Any, request: int, ret_pages: Any, /) -> int: ...
    def usw_session_kill_all(self, session: Any, why: bytes, /) -> None: ...

lib: _Lib
