// SPDX-License-Identifier: MIT

/**
 * @file
 * Watermarks. See demote.h.
 */

#include "demote.h"
#include "compact.h"

#define USW_WATERMARK_GAP_BYTES (4u << 20)
/* A tier that leaves waits this long for RAM that the program does not give. */
#define USW_TIGHT_NS 2000000000u

/** What is held in RAM outside the targets, by now: segments change between two accounts. */
static uint64_t ram_bytes_now(const struct usw_session *session)
{
	uint64_t other = atomic_load(&session->ram_bytes) - atomic_load(&session->ram_stored_bytes);

	return other + session->segments.used_bytes;
}

static bool is_tight(const struct usw_session *session, uint64_t ram_bytes)
{
	int64_t pages = usw_session_resident(session);
	uint64_t resident = pages > 0 ? (uint64_t)pages * USW_PAGE_BYTES : 0;

	return ram_bytes + resident > atomic_load(&session->memory_limit_bytes);
}

/** There was room when its removal began. If that is gone for good, the tier stays. */
static void keep_leaving_if_tight(struct usw_session *session, bool tight)
{
	bool is_hopeless = tight && !usw_tiers_have_room(&session->tiers);

	if (usw_lasts(&session->tight_since_ns, is_hopeless, USW_TIGHT_NS))
		usw_tiers_keep_leaving(&session->tiers);
}

/** Find where what is stored and what is resident meet. */
static void balance(struct usw_session *session)
{
	struct usw_balance_seen seen = {
		.disk_bytes = session->tiers.read_bytes,
		.live_bytes =
			atomic_load_explicit(&session->segments.live_bytes, memory_order_relaxed),
		.live_objects =
			atomic_load_explicit(&session->segments.live_count, memory_order_relaxed),
		.memory_bytes = atomic_load(&session->memory_limit_bytes),
	};

	if (seen.memory_bytes == UINT64_MAX)
		return;
	// What is read once in the time that it takes to replace all of the budget four times.
	session->tiers.read_faults =
		(uint32_t)usw_min(seen.memory_bytes / USW_PAGE_BYTES * 4, (uint64_t)INT32_MAX);
	for (uint32_t i = 0; i < session->thread_count; i++) {
		const struct usw_fault_thread *thread = &session->threads[i];

		seen.near_faults +=
			atomic_load_explicit(&thread->near_faults, memory_order_relaxed);
		seen.disk_faults +=
			atomic_load_explicit(&thread->counters.faults_disk, memory_order_relaxed);
		seen.disk_pages += atomic_load_explicit(&thread->disk_pages, memory_order_relaxed);
		seen.disk_ns += atomic_load_explicit(&thread->disk_ns, memory_order_relaxed);
	}
	usw_balance_look(&session->balance, &seen, usw_now_ns());
}

static struct usw_tiers_plan make_plan(struct usw_session *session, bool in_need)
{
	uint64_t memory = atomic_load(&session->memory_limit_bytes);
	uint64_t used = session->segments.used_bytes;
	uint64_t ram = ram_bytes_now(session);
	bool demote_parked = session->parking.stage == USW_PARKING_DOWN;

	if (memory == UINT64_MAX)
		return (struct usw_tiers_plan){.promote_bytes = UINT64_MAX,
					       .demote_parked = demote_parked};

	uint64_t high = usw_balance_stored_bytes(&session->balance, memory);
	uint64_t low = high - usw_min(high / 4, usw_max(USW_WATERMARK_GAP_BYTES, memory / 32));
	// Where the agent itself is most of it, sending the last segments away would help little.
	uint64_t kept = in_need ? 0 : usw_min(used, memory / 8);
	if (ram > high)
		session->is_demoting = true;
	else if (ram <= low)
		session->is_demoting = false;
	return (struct usw_tiers_plan){
		.demote_bytes = in_need                ? used
				: session->is_demoting ? usw_min(ram - low, used - kept)
						       : 0,
		.promote_bytes = ram < low ? low - ram : 0,
		.is_tight = is_tight(session, ram),
		.demote_parked = demote_parked,
	};
}

bool usw_demote_step(struct usw_session *session, bool in_need)
{
	struct usw_tiers *tiers = &session->tiers;

	if (!atomic_load(&tiers->count)) {
		session->balance.packing_pays = true; // nothing else makes room
		return false;
	}
	session->segments.clock = atomic_load_explicit(&session->fault_clock, memory_order_relaxed);
	balance(session);
	struct usw_tiers_plan plan = make_plan(session, in_need);
	if (in_need)
		atomic_store_explicit(&tiers->needed_ns, usw_now_ns(), memory_order_relaxed);
	keep_leaving_if_tight(session, plan.is_tight);
	bool is_busy = usw_tiers_step(tiers, &plan);
	if (tiers->to_empty) {
		tiers->to_empty--;
		usw_compact_one(&session->vswap);
	}
	return is_busy;
}

uint64_t usw_demote_ram_free_bytes(const struct usw_session *session)
{
	uint64_t memory = atomic_load(&session->memory_limit_bytes);
	uint64_t ram = atomic_load(&session->ram_bytes);

	if (memory == UINT64_MAX)
		return UINT64_MAX;
	// A quarter is left for what must be resident.
	return memory > ram ? (memory - ram) / 4 * 3 : 0;
}
