// SPDX-License-Identifier: MIT

/**
 * @file
 * Bytes and pages, and the limit that follows from them. See account.h.
 */

#include <stdio.h>

#include "account.h"
#include "demote.h"

/* A limit that has stood at its floor for so long will not rise by itself. */
#define USW_FLOOR_NS 3000000000u

uint64_t usw_account_own_bytes(void)
{
	unsigned long long size, resident, shared;
	FILE *stream = fopen("/proc/self/statm", "re");

	if (!stream)
		return 0;
	int fields = fscanf(stream, "%llu %llu %llu", &size, &resident, &shared);
	fclose(stream);
	return fields == 3 && resident > shared ? (resident - shared) * USW_PAGE_BYTES : 0;
}

static void raise_peak(_Atomic uint64_t *peak, uint64_t value)
{
	if (value > atomic_load_explicit(peak, memory_order_relaxed))
		atomic_store_explicit(peak, value, memory_order_relaxed);
}

/** What the session holds in RAM outside its targets. */
static uint64_t account_ram(struct usw_session *session)
{
	uint64_t metadata =
		usw_vswap_held_bytes(&session->vswap) + usw_nodes_held_bytes(&session->nodes) +
		usw_segments_metadata_bytes(&session->segments) +
		atomic_load_explicit(&session->tiers.tags.held_bytes, memory_order_relaxed) +
		usw_equal_held_bytes(&session->equal);
	uint64_t standby_touched = 0;
	uint64_t standby_pages = 0;

	for (struct usw_target *target = session->targets; target; target = target->next) {
		standby_touched += target->standby.touched;
		standby_pages += usw_standby_count(&target->standby);
	}
	uint64_t ram = session->own_bytes + metadata + session->segments.used_bytes +
		       standby_touched * USW_PAGE_BYTES;
	atomic_store(&session->metadata_bytes, metadata);
	atomic_store(&session->standby_pages, standby_pages);
	atomic_store(&session->ram_stored_bytes, session->segments.used_bytes);
	atomic_store(&session->ram_segments, session->segments.used_segments);
	atomic_store(&session->compacted_segments, session->segments.compacted_segments);
	atomic_store(&session->ram_bytes, ram);
	raise_peak(&session->ram_peak_bytes, ram);
	return ram;
}

int64_t usw_account_reserve_pages(const struct usw_session *session)
{
	int64_t reserve = atomic_load(&session->limit_pages) / 32;

	return reserve < 32 ? 32 : reserve > 1024 ? 1024 : reserve;
}

/** Work out how many pages may be resident now: the smaller of both limits. */
static void set_limit(struct usw_session *session, uint64_t ram_bytes)
{
	uint64_t memory = atomic_load(&session->memory_limit_bytes);
	uint64_t limit = atomic_load(&session->resident_limit_bytes);

	if (memory != UINT64_MAX)
		limit = usw_min(limit, memory > ram_bytes ? memory - ram_bytes : 0);
	limit = limit == UINT64_MAX ? INT64_MAX / 2
				    : usw_max(limit / USW_PAGE_BYTES, USW_FLOOR_PAGES);
	atomic_store(&session->limit_pages, (int64_t)limit);
	atomic_store(&session->low_pages, usw_account_reserve_pages(session) / 2);

	uint64_t resident = (uint64_t)atomic_load(&session->resident_base) * USW_PAGE_BYTES;
	atomic_store(&session->keep_copies,
		     memory == UINT64_MAX || ram_bytes + resident < memory - memory / 8);
}

/**
 * At the floor, which is there so that nothing comes to a standstill, a program crawls and nobody
 * knows why: it is said once, when it has lasted.
 */
static void warn_at_floor(struct usw_session *session)
{
	struct usw_reclaim *reclaim = &session->reclaim;
	uint64_t memory = atomic_load(&session->memory_limit_bytes);

	bool at_floor = memory != UINT64_MAX &&
			atomic_load(&session->limit_pages) <= USW_FLOOR_PAGES &&
			!atomic_load(&session->waits_for_room) && usw_account_has_faulted(reclaim);

	if (!usw_lasts(&reclaim->floor_since_ns, at_floor, USW_FLOOR_NS) || reclaim->warned_floor)
		return;
	reclaim->warned_floor = true;
	usw_session_report(
		session, USW_EVENT_WARNING, 0, 0,
		"the budget of %llu MiB leaves next to nothing for pages in memory, and the "
		"program crawls: what has left and uffdswap itself take %llu MiB; give "
		"--memory more",
		usw_account_mib(memory), usw_account_mib(atomic_load(&session->ram_bytes)));
}

bool usw_account_if_due(struct usw_session *session)
{
	uint64_t now_ns = usw_now_ns();

	if (now_ns - session->reclaim.accounted_ns < USW_ACCOUNT_NS)
		return false;
	session->reclaim.accounted_ns = now_ns;
	set_limit(session, account_ram(session));
	warn_at_floor(session);
	usw_demote_step(session, false);
	return true;
}

void usw_account_freed(struct usw_session *session)
{
	usw_vswap_collect(&session->vswap);
	usw_segments_reap(&session->segments);
	if (atomic_load(&session->tiers.count))
		usw_tiers_count(&session->tiers);
	set_limit(session, account_ram(session));
}
