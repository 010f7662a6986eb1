// SPDX-License-Identifier: MIT

/**
 * @file
 * Compressor threads and their ring. See ahead.h.
 */

#include <sys/mman.h>

#include "ahead.h"
#include "futex.h"
#include "priority.h"

/* A page that a thread is at takes no longer, unless the thread has lost its processor. */
#define USW_AHEAD_WAIT_NS 50000u

// --- Any thread ---------------------------------------------------------------------------------

static struct usw_ahead_entry *entry_of(struct usw_ahead *ahead, uint32_t count)
{
	return &ahead->entries[count % USW_AHEAD_ENTRIES];
}

static char *bytes_of(struct usw_ahead *ahead, const struct usw_ahead_entry *entry)
{
	return ahead->objects + (uint64_t)(entry - ahead->entries) * USW_PAGE_BYTES;
}

/** Compress the page of an entry if nobody else does. */
static bool try_compress(struct usw_ahead *ahead, struct usw_ahead_entry *entry,
			 struct usw_compressor *compressor)
{
	uint32_t open = USW_AHEAD_OPEN;

	if (!atomic_compare_exchange_strong_explicit(&entry->state, &open, USW_AHEAD_TAKEN,
						     memory_order_acquire, memory_order_relaxed))
		return false;
	entry->length_bytes = usw_compressor_compress(
		compressor, entry->number,
		usw_standby_page(ahead->standbys, entry->number, entry->slot),
		bytes_of(ahead, entry), atomic_load_explicit(&ahead->dense, memory_order_acquire),
		&entry->codec);
	entry->is_by_thread = compressor != &ahead->compressor;
	atomic_store_explicit(&entry->state, USW_AHEAD_DONE, memory_order_release);
	return true;
}

// --- The threads --------------------------------------------------------------------------------

/** Sleep until something is offered, if all that was has been looked at. */
static void sleep_until_offered(struct usw_ahead *ahead, uint32_t offered)
{
	atomic_fetch_add(&ahead->sleepers, 1);
	if (!atomic_load(&ahead->stopping))
		usw_futex_wait(&ahead->offered, offered, NULL);
	atomic_fetch_sub(&ahead->sleepers, 1);
}

static void *compressor_main(void *argument)
{
	struct usw_ahead_thread *thread = argument;
	struct usw_ahead *ahead = thread->ahead;

	usw_priority_wait();
	while (!atomic_load_explicit(&ahead->stopping, memory_order_relaxed)) {
		uint32_t claimed = atomic_load(&ahead->claimed);
		uint32_t offered = atomic_load(&ahead->offered);
		uint32_t next = claimed;

		if (offered - next > USW_AHEAD_ENTRIES)
			next = offered - USW_AHEAD_ENTRIES; // those before have been overwritten
		if (next == offered) {
			sleep_until_offered(ahead, offered);
		} else if (atomic_compare_exchange_weak(&ahead->claimed, &claimed, next + 1)) {
			try_compress(ahead, entry_of(ahead, next), &thread->compressor);
			usw_priority_yield();
		}
	}
	return NULL;
}

// --- The owner ----------------------------------------------------------------------------------

uint32_t usw_ahead_default_threads(void)
{
	long processors = sysconf(_SC_NPROCESSORS_ONLN);

	return processors > 1 ? (uint32_t)usw_min((uint64_t)processors - 1, USW_AHEAD_THREADS_MAX)
			      : 0;
}

void usw_ahead_init(struct usw_ahead *ahead, const struct usw_standby_space *standbys,
		    uint32_t threads)
{
	ahead->standbys = standbys;
	ahead->wanted = threads;
	atomic_store_explicit(&ahead->dense, USW_DENSE_NOT, memory_order_relaxed);
}

void usw_ahead_deinit(struct usw_ahead *ahead)
{
	atomic_store(&ahead->stopping, true);
	atomic_fetch_add(&ahead->offered, 1); // who is about to sleep does not
	usw_futex_wake(&ahead->offered, USW_AHEAD_THREADS_MAX);
	for (uint32_t i = 0; i < ahead->started; i++) {
		usw_priority_wait_no_more(ahead->threads[i].thread);
		pthread_join(ahead->threads[i].thread, NULL);
		usw_compressor_deinit(&ahead->threads[i].compressor);
	}
	usw_compressor_deinit(&ahead->compressor);
	ahead->started = ahead->wanted = 0;
	if (ahead->objects)
		munmap(ahead->objects, USW_AHEAD_ENTRIES * USW_PAGE_BYTES);
	ahead->objects = NULL;
}

/** False: there are no threads, nor will there be. */
static bool start(struct usw_ahead *ahead)
{
	if (ahead->started || !ahead->wanted)
		return ahead->started;

	uint32_t wanted = ahead->wanted;
	void *objects = mmap(NULL, USW_AHEAD_ENTRIES * USW_PAGE_BYTES, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ahead->wanted = 0; // whatever comes of it, once
	if (objects == MAP_FAILED)
		return false;
	ahead->objects = objects;
	for (uint32_t i = 0; i < wanted; i++) {
		struct usw_ahead_thread *thread = &ahead->threads[i];

		thread->ahead = ahead;
		if (pthread_create(&thread->thread, NULL, compressor_main, thread))
			break;
		pthread_setname_np(thread->thread, "uffdswap-compre");
		ahead->started++;
	}
	return ahead->started;
}

void usw_ahead_want(struct usw_ahead *ahead, uint32_t dense)
{
	if (atomic_load_explicit(&ahead->dense, memory_order_relaxed) != dense)
		atomic_store_explicit(&ahead->dense, dense, memory_order_release);
}

uint32_t usw_ahead_offer(struct usw_ahead *ahead, uint32_t number, uint32_t slot)
{
	if (!start(ahead))
		return 0;

	uint32_t count = atomic_load_explicit(&ahead->offered, memory_order_relaxed);
	struct usw_ahead_entry *entry = entry_of(ahead, count);
	uint32_t state = atomic_load_explicit(&entry->state, memory_order_acquire);

	// A thread that has lost its processor keeps its entry: the ring goes on behind it.
	if (state == USW_AHEAD_OPEN &&
	    !atomic_compare_exchange_strong_explicit(&entry->state, &state, USW_AHEAD_FREE,
						     memory_order_acquire, memory_order_acquire))
		state = USW_AHEAD_TAKEN;
	if (state != USW_AHEAD_TAKEN) {
		entry->number = number;
		entry->slot = slot;
		atomic_store_explicit(&entry->state, USW_AHEAD_OPEN, memory_order_release);
	}
	atomic_store(&ahead->offered, count + 1);
	return state == USW_AHEAD_TAKEN ? 0 : count % USW_AHEAD_ENTRIES + 1;
}

void usw_ahead_wake(struct usw_ahead *ahead)
{
	uint32_t open = atomic_load(&ahead->offered) - atomic_load(&ahead->claimed);
	uint32_t sleepers = atomic_load(&ahead->sleepers);

	if (open && sleepers)
		usw_futex_wake(&ahead->offered, (uint32_t)usw_min(open, sleepers));
}

/** While another thread is at the page that is wanted: compress the one that is farthest off. */
static bool help(struct usw_ahead *ahead)
{
	uint32_t last = atomic_load_explicit(&ahead->offered, memory_order_relaxed);
	uint32_t first = atomic_load_explicit(&ahead->claimed, memory_order_relaxed);

	for (uint32_t count = last; count != first && last - count < USW_AHEAD_ENTRIES; count--)
		if (try_compress(ahead, entry_of(ahead, count - 1), &ahead->compressor))
			return true;
	return false;
}

static bool is_done(struct usw_ahead *ahead, struct usw_ahead_entry *entry)
{
	uint64_t waits_since_ns = 0;

	while (atomic_load_explicit(&entry->state, memory_order_acquire) != USW_AHEAD_DONE) {
		if (try_compress(ahead, entry, &ahead->compressor))
			return true;
		if (usw_lasts(&waits_since_ns, true, USW_AHEAD_WAIT_NS))
			return false;
		if (!help(ahead))
			usw_cpu_relax();
	}
	return true;
}

const struct usw_ahead_entry *usw_ahead_take(struct usw_ahead *ahead, uint32_t offer,
					     uint32_t number, uint32_t slot, const char **ret_bytes)
{
	if (!offer)
		return NULL;

	struct usw_ahead_entry *entry = &ahead->entries[offer - 1];
	if (entry->number != number || entry->slot != slot || !is_done(ahead, entry))
		return NULL; // overwritten, or its thread is not running
	*ret_bytes = bytes_of(ahead, entry);
	return entry;
}
