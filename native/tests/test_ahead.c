// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: what was compressed ahead is the page that was asked for or it is not there, whoever was
 * quicker, and nobody waits for a thread that does not run.
 * Method: slots of known content, offered and asked for by one thread with none, one and several
 * compressor threads beside it, in order, late, twice and never; and a thread that stands still.
 */

#include <sys/mman.h>

#include "ahead.h"
#include "check.h"

#define SLOTS 1024u
#define ROUNDS 40u

static struct usw_standby_space space;
static struct usw_standby standby;
static struct usw_ahead ahead;
static int area_fd;
static char *slots; /* what hands would write to */
static uint64_t dense_taken;

static void begin(uint32_t threads)
{
	memset(&ahead, 0, sizeof(ahead));
	usw_ahead_init(&ahead, &space, threads);
}

static enum check_kind kind_of(uint64_t seed)
{
	return seed % 7 == 0 ? CHECK_RANDOM : seed % 5 == 0 ? CHECK_TINY : CHECK_TEXT;
}

static void fill(uint32_t slot, uint64_t seed)
{
	check_fill(slots + (uint64_t)slot * USW_PAGE_BYTES, kind_of(seed), seed);
}

static uint32_t offer(uint32_t slot)
{
	return usw_ahead_offer(&ahead, standby.number, slot);
}

/** Ask for a slot's object; true if it is there, and then it must be right. */
static bool take(uint32_t offered, uint32_t slot, uint64_t seed)
{
	char page[USW_PAGE_BYTES], expected[USW_PAGE_BYTES];
	const char *bytes;
	const struct usw_ahead_entry *entry =
		usw_ahead_take(&ahead, offered, standby.number, slot, &bytes);

	if (!entry)
		return false;
	check_fill(expected, kind_of(seed), seed);
	CHECK_EQ(usw_codec_decompress(entry->codec, bytes, entry->length_bytes, page), 0);
	CHECK_EQ(memcmp(page, expected, USW_PAGE_BYTES), 0);
	dense_taken += entry->codec == USW_CODEC_DENSE;
	CHECK((entry->codec == USW_CODEC_STORED) == (kind_of(seed) == CHECK_RANDOM));
	return true;
}

static void test_without_threads_nothing_is_taken(void)
{
	begin(0);
	CHECK_EQ(offer(0), 0);
	CHECK(!take(0, 0, 0));
	usw_ahead_wake(&ahead);
	CHECK(!ahead.objects);
	usw_ahead_deinit(&ahead);
}

/** As the queue does: offered some way ahead of being asked for, over slots used again and again. */
static void test_in_order(uint32_t threads)
{
	uint32_t given[SLOTS];
	uint64_t made = 0;

	dense_taken = 0;
	begin(threads);
	for (uint32_t round = 0; round < ROUNDS; round++) {
		uint32_t next = 0;

		usw_ahead_want(&ahead,
			       round % 2 ? 0 : USW_DENSE_NOT); // whatever is offered already
		for (uint32_t slot = 0; slot < SLOTS; slot++)
			fill(slot, round * SLOTS + slot);
		for (uint32_t slot = 0; slot < SLOTS; slot++) {
			if (slot % 64 == 0) {
				while (next < SLOTS && next < slot + USW_AHEAD_ENTRIES) {
					given[next] = offer(next);
					next++;
				}
				usw_ahead_wake(&ahead);
			}
			made += take(given[slot], slot, round * SLOTS + slot);
		}
	}
	// Only a page whose thread lost its processor is not there.
	CHECK_THAT(made, >=, ROUNDS * SLOTS / 2);
	CHECK(dense_taken || usw_dense_prepare());
	usw_ahead_deinit(&ahead);
}

static void test_what_was_overwritten_is_not_there(void)
{
	uint32_t first, given;

	begin(1);
	fill(0, 1);
	fill(1, 2);
	first = offer(0);
	CHECK(first);
	for (uint32_t i = 0; i < USW_AHEAD_ENTRIES; i++)
		given = offer(1); // a thread may be at the first for as long as it likes
	CHECK(!take(first, 0, 1) || given != first);
	CHECK(!take(first, 2, 1)); // another slot
	usw_ahead_deinit(&ahead);
}

/** A thread that has taken a page and does not get a processor. */
static void test_nobody_waits_for_a_thread_that_stands_still(void)
{
	begin(1);
	for (uint32_t slot = 0; slot < 4; slot++)
		fill(slot, slot + 1);
	uint32_t first = offer(0);
	// Whatever the real thread has made of it: from now on it is somebody's.
	while (atomic_load(&ahead.claimed) != 1)
		usw_ahead_wake(&ahead);
	while (atomic_load(&ahead.entries[0].state) != USW_AHEAD_DONE)
		usw_cpu_relax();
	atomic_store(&ahead.entries[0].state, USW_AHEAD_TAKEN);
	for (uint32_t slot = 1; slot < 4; slot++)
		offer(slot);
	CHECK(!take(first, 0, 1));
	// The ring goes round it, and what it is at is left to it.
	for (uint32_t i = 0; i < 3 * USW_AHEAD_ENTRIES; i++) {
		uint32_t again = offer(2);

		CHECK((again == 0) == (atomic_load(&ahead.offered) % USW_AHEAD_ENTRIES == 1));
		CHECK_EQ(atomic_load(&ahead.entries[0].state), USW_AHEAD_TAKEN);
		CHECK_EQ(ahead.entries[0].slot, 0);
	}
	usw_ahead_deinit(&ahead);
}

/** Threads are at work, or about to sleep, or asleep. */
static void test_end_at_any_time(void)
{
	for (uint32_t i = 0; i < 50; i++) {
		begin(1 + i % 3);
		for (uint32_t slot = 0; slot < i; slot++)
			offer(slot);
		if (i % 2)
			usw_ahead_wake(&ahead);
		if (i % 5 == 0)
			usleep(500);
		usw_ahead_deinit(&ahead);
		CHECK_EQ(offer(0), 0);
	}
}

int main(void)
{
	check_start(60);
	usw_dense_prepare(); // if there is zstd
	area_fd = memfd_create("area", MFD_CLOEXEC);
	CHECK(area_fd >= 0 && ftruncate(area_fd, USW_AREA_MEMFD_BYTES) == 0);
	slots = mmap(NULL, USW_STANDBY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, area_fd,
		     USW_RING_BYTES);
	CHECK(slots != MAP_FAILED);
	CHECK_EQ(usw_standby_space_create(&space), 0);
	CHECK_EQ(usw_standby_init(&standby, &space, area_fd, SLOTS), 0);

	test_without_threads_nothing_is_taken();
	test_in_order(1);
	test_in_order(USW_AHEAD_THREADS_MAX);
	test_what_was_overwritten_is_not_there();
	test_nobody_waits_for_a_thread_that_stands_still();
	test_end_at_any_time();

	usw_standby_deinit(&standby);
	usw_standby_space_destroy(&space);
	munmap(slots, USW_STANDBY_BYTES);
	close(area_fd);
	return 0;
}
