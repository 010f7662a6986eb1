// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: after every change of layout the page map and the list of registered ranges say the same:
 * an evicted page is on the list, or its word would be forgotten at the next registration.
 * Method: a target without a process, words put in by hand, events as the kernel sends them.
 */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"
#include "event.h"
#include "session.h"
#include "uffd.h"

#define BASE ((uint64_t)0x7f0000000000)
#define OTHER ((uint64_t)0x7f1000000000)
#define PAGES(n) ((uint64_t)(n) * USW_PAGE_BYTES)

static struct usw_session session;
static struct usw_fault_thread thread;

static struct usw_target *start(void)
{
	CHECK_EQ(usw_nodes_create(&session.nodes, 1024), 0);
	CHECK_EQ(usw_vswap_create(&session.vswap, &session.segments, 1024), 0);
	struct usw_target *target = usw_target_create(&session);
	CHECK(target);
	target->thread = &thread;
	return target;
}

static void stop(struct usw_target *target)
{
	usw_target_forget(target, 0, (uint64_t)1 << 47);
	CHECK_EQ(atomic_load(&session.vswap.live_count), 0);
	usw_target_destroy(target);
	usw_vswap_destroy(&session.vswap);
	usw_nodes_destroy(&session.nodes);
}

static void *map(uint64_t count)
{
	void *places = mmap(NULL, PAGES(count), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			    -1, 0);

	CHECK(places != MAP_FAILED);
	return places;
}

/** `count` pages are out, and their range is on the list. */
static void evict_at(struct usw_target *target, uint64_t start_address, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++) {
		usw_page_word *word = usw_pagemap_make(&target->pagemap, start_address + PAGES(i));
		uint32_t id;

		CHECK(word);
		CHECK_EQ(usw_vswap_alloc(&session.vswap, USW_BACKEND_ZERO, 0, 0, &id), 0);
		atomic_store(word, usw_page_make(USW_PAGE_EVICTED, 0, id, 0));
	}
	CHECK(usw_ranges_add(&target->registered, start_address, start_address + PAGES(count)));
}

/** Pages [first, first + count) from BASE. */
static void evict(struct usw_target *target, uint64_t first, uint64_t count)
{
	evict_at(target, BASE + PAGES(first), count);
}

static bool is_evicted(struct usw_target *target, uint64_t address)
{
	usw_page_word *word = usw_pagemap_find(&target->pagemap, address);

	return word && usw_page_state(atomic_load(word)) == USW_PAGE_EVICTED;
}

/** Words and list, of `count` pages from `start`: evicted are those in [first, end) of them. */
static void check_evicted(struct usw_target *target, uint64_t start, uint64_t count, uint64_t first,
			  uint64_t end)
{
	for (uint64_t i = 0; i < count; i++) {
		uint64_t page = start + PAGES(i);
		bool wanted = i >= first && i < end;

		CHECK_EQ(is_evicted(target, page), wanted);
		CHECK_EQ(usw_ranges_cover(&target->registered, page, page + PAGES(1)), wanted);
	}
}

static void remap(struct usw_target *target, uint64_t from, uint64_t to, uint64_t count)
{
	struct uffd_msg message = {.event = UFFD_EVENT_REMAP};

	message.arg.remap.from = from;
	message.arg.remap.to = to;
	message.arg.remap.len = PAGES(count);
	usw_event_apply(target, &message, 1);
}

static void say(struct usw_target *target, uint8_t event, uint64_t start, uint64_t count)
{
	struct uffd_msg message = {.event = event};

	message.arg.remove.start = start;
	message.arg.remove.end = start + PAGES(count);
	usw_event_apply(target, &message, 1);
}

static void unmap(struct usw_target *target, uint64_t start, uint64_t count)
{
	say(target, UFFD_EVENT_UNMAP, start, count);
}

/** The kernel tells of a move, and then that what has moved is not in the old place any more. */
static void say_moved(struct usw_target *target, uint64_t from, uint64_t to, uint64_t count)
{
	remap(target, from, to, count);
	unmap(target, from, count);
}

static void test_remap_of_a_part_that_was_never_evicted_from(void)
{
	struct usw_target *target = start();

	// The mapping has grown since pages left it: only its middle is on the list.
	evict(target, 2, 4);
	remap(target, BASE, OTHER, 8);
	check_evicted(target, BASE, 8, 0, 0);
	check_evicted(target, OTHER, 8, 2, 6);
	stop(target);
}

static void test_remap_cuts_what_lies_around(void)
{
	struct usw_target *target = start();

	evict(target, 0, 8);
	remap(target, BASE + PAGES(2), OTHER, 3);
	check_evicted(target, OTHER, 4, 0, 3);
	check_evicted(target, BASE, 2, 0, 2);
	check_evicted(target, BASE + PAGES(2), 3, 0, 0);
	check_evicted(target, BASE + PAGES(5), 4, 0, 3);
	stop(target);
}

static void test_remap_over_what_was_evicted(void)
{
	struct usw_target *target = start();

	evict(target, 0, 2);
	evict(target, 8, 8);
	unmap(target, BASE + PAGES(8), 4);
	say_moved(target, BASE, BASE + PAGES(8), 4);
	check_evicted(target, BASE, 8, 0, 0);
	check_evicted(target, BASE + PAGES(8), 4, 0, 2);
	check_evicted(target, BASE + PAGES(12), 4, 0, 4);
	stop(target);
}

static void test_unmap_and_remove(void)
{
	struct usw_target *target = start();
	struct uffd_msg messages[2] = {{.event = UFFD_EVENT_UNMAP}, {.event = UFFD_EVENT_REMOVE}};

	evict(target, 0, 8);
	messages[0].arg.remove.start = BASE + PAGES(1);
	messages[0].arg.remove.end = BASE + PAGES(3);
	messages[1].arg.remove.start = BASE + PAGES(5);
	messages[1].arg.remove.end = BASE + PAGES(6);
	usw_event_apply(target, messages, 2);
	check_evicted(target, BASE, 3, 0, 1);
	CHECK(!is_evicted(target, BASE + PAGES(2)) && is_evicted(target, BASE + PAGES(3)));
	// Memory that was given back is still mapped and registered.
	CHECK(!is_evicted(target, BASE + PAGES(5)));
	CHECK(usw_ranges_cover(&target->registered, BASE + PAGES(3), BASE + PAGES(8)));
	stop(target);
}

// --- Two threads, told in another order than they have done it ----------------------------------

/** Pages 0 to 4 are one thread's, a fifth is out of the other's. */
static struct usw_target *start_two(void)
{
	struct usw_target *target = start();

	evict(target, 0, 4);
	evict(target, 16, 1);
	CHECK(usw_ranges_add(&target->registered, BASE + PAGES(17), BASE + PAGES(20)));
	return target;
}

/** The first one's is at OTHER, the other's is where it was. */
static void check_two(struct usw_target *target)
{
	CHECK_EQ(target->told_count, 0);
	CHECK(!atomic_load(&target->events_pending));
	check_evicted(target, OTHER, 4, 0, 4);
	CHECK(is_evicted(target, BASE) && !is_evicted(target, BASE + PAGES(1)));
	CHECK(usw_ranges_cover(&target->registered, BASE, BASE + PAGES(4)));
	check_evicted(target, BASE + PAGES(16), 4, 0, 0);
	stop(target);
}

static void test_a_move_waits_for_the_one_that_has_made_room(void)
{
	struct usw_target *target = start_two();

	evict(target, 32, 4);
	CHECK(usw_ranges_add(&target->registered, OTHER, OTHER + PAGES(4)));
	say_moved(target, BASE + PAGES(16), BASE, 4);
	CHECK(atomic_load(&target->events_pending));
	unmap(target, OTHER, 4);
	say_moved(target, BASE, OTHER, 4);
	check_evicted(target, BASE + PAGES(32), 4, 0, 4);
	check_two(target);
}

static void test_a_move_waits_for_what_was_unmapped(void)
{
	struct usw_target *target = start_two();

	say_moved(target, BASE + PAGES(16), BASE, 4);
	CHECK(is_evicted(target, BASE + PAGES(16)));
	unmap(target, BASE, 4);
	CHECK(!atomic_load(&target->events_pending));
	CHECK(is_evicted(target, BASE) && !is_evicted(target, BASE + PAGES(1)));
	CHECK(!is_evicted(target, BASE + PAGES(16)));
	stop(target);
}

static void test_a_chain_of_moves(void)
{
	struct usw_target *target = start_two();

	evict(target, 32, 4);
	remap(target, BASE + PAGES(32), BASE + PAGES(16), 4); // the last of three was told first
	remap(target, BASE + PAGES(16), BASE, 4);
	remap(target, BASE, OTHER, 4);
	CHECK_EQ(target->told_count, 0);
	check_evicted(target, BASE + PAGES(16), 4, 0, 4);
	unmap(target, BASE + PAGES(16), 4);
	unmap(target, BASE + PAGES(32), 4);
	unmap(target, BASE, 4);
	check_evicted(target, BASE + PAGES(16), 4, 0, 4); // all of these were expected
	unmap(target, BASE + PAGES(16), 4);
	check_two(target);
}

/**
 * Memory moves on from where other memory has come, as it was told. Is it what has come, or what was
 * there before, of which nothing has left? That is present where it is now.
 */
static void move_on(bool is_of_before)
{
	void *places = map(12);
	uint64_t first = (uintptr_t)places, second = first + PAGES(4), third = first + PAGES(8);
	struct usw_target *target = start();

	target->pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (is_of_before)
		memset((void *)(uintptr_t)(third + PAGES(1)), 1, PAGES(2));
	evict_at(target, first, 4);
	evict_at(target, third, 2);
	say_moved(target, first, second, 4);
	check_evicted(target, second, 4, 0, 4);
	unmap(target, third, 4);
	say_moved(target, second, third, 4);
	CHECK_EQ(target->told_count, 0);
	check_evicted(target, second, 4, 0, is_of_before ? 4 : 0);
	check_evicted(target, third, 4, 0, is_of_before ? 0 : 4);
	stop(target);
	munmap(places, PAGES(12));
}

static void test_memory_moves_on(void)
{
	move_on(false);
	move_on(true);
}

static void test_memory_given_back_is_that_which_has_come(void)
{
	struct usw_target *target = start_two();

	remap(target, BASE + PAGES(16), BASE, 4);
	say(target, UFFD_EVENT_REMOVE, BASE, 4);
	CHECK_EQ(target->told_count, 2);
	remap(target, BASE, OTHER, 4);
	CHECK_EQ(target->told_count, 0);
	check_evicted(target, OTHER, 4, 0, 4);
	CHECK(!is_evicted(target, BASE));
	CHECK(usw_ranges_cover(&target->registered, BASE, BASE + PAGES(4)));
	stop(target);
}

static void test_what_waits_in_vain(void)
{
	struct usw_target *target = start_two();

	remap(target, BASE + PAGES(16), BASE, 4);
	usw_event_settle(target); // who has no userfaultfd says nothing
	CHECK_EQ(target->told_count, 1);
	usw_event_conclude(target);
	CHECK_EQ(target->told_count, 0);
	CHECK(is_evicted(target, BASE) && !is_evicted(target, BASE + PAGES(1)));
	CHECK(!atomic_load(&target->events_pending));
	stop(target);
}

static void test_more_than_can_wait(void)
{
	struct usw_target *target = start();

	evict(target, 0, 1);
	for (uint64_t i = 0; i < 2 * USW_TOLD_MAX; i++) {
		CHECK(usw_ranges_add(&target->registered, OTHER + PAGES(i), OTHER + PAGES(i + 1)));
		remap(target, i ? OTHER + PAGES(i - 1) : BASE, OTHER + PAGES(i), 1);
	}
	usw_event_conclude(target);
	check_evicted(target, OTHER, 2 * USW_TOLD_MAX, 2 * USW_TOLD_MAX - 1, 2 * USW_TOLD_MAX);
	stop(target);
}

// --- Forks --------------------------------------------------------------------------------------

/** A child in whose address space `count` pages at `start` are registered: this one, or none is. */
static void fork_with(struct usw_target *parent, void *start, uint64_t count)
{
	struct uffd_msg message = {.event = UFFD_EVENT_FORK};
	struct uffdio_api api = {.api = UFFD_API};
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);

	CHECK(uffd >= 0 && ioctl(uffd, UFFDIO_API, &api) == 0);
	CHECK_EQ(usw_uffd_register(uffd, (uintptr_t)start, PAGES(count)), 0);
	message.arg.fork.ufd = (uint32_t)uffd;
	usw_event_apply(parent, &message, 1);
	CHECK_EQ(parent->told[parent->told_count - 1].message.event, UFFD_EVENT_FORK);
}

/** The child of a parent, which has concluded. */
static struct usw_target *take_child(struct usw_target *parent)
{
	struct usw_target *child = session.targets;

	CHECK(child && child->state == USW_TARGET_LIVE && !child->next);
	CHECK_EQ(parent->told_count, 0);
	session.targets = NULL;
	return child;
}

static void stop_both(struct usw_target *parent, struct usw_target *child)
{
	usw_target_forget(child, 0, USW_ADDRESS_END);
	usw_target_destroy(child);
	stop(parent);
}

/** A move is told after a fork. Where does the child have the memory? */
static void fork_then_move(bool child_has_moved)
{
	void *places = map(8);
	uint64_t from = (uintptr_t)places, to = from + PAGES(4);
	struct usw_target *target = start();

	evict_at(target, from, 4);
	evict_at(target, to, 2); // this makes room
	fork_with(target, (void *)(uintptr_t)(child_has_moved ? to : from), 4);
	unmap(target, to, 4);
	say_moved(target, from, to, 4);
	check_evicted(target, from, 4, 0, 4); // the fork is not followed, so nothing is
	CHECK(atomic_load(&target->events_pending));
	usw_event_conclude(target);
	check_evicted(target, to, 4, 0, 4);
	check_evicted(target, from, 4, 0, 0);
	struct usw_target *child = take_child(target);
	check_evicted(child, child_has_moved ? to : from, 4, 0, 4);
	CHECK_EQ(is_evicted(child, from), !child_has_moved);
	stop_both(target, child);
	munmap(places, PAGES(8));
}

/** Four pages have moved from one place over two of another, but not in the child. */
static void end_with_child_of_before(struct usw_target *target, uint64_t from, uint64_t over)
{
	usw_event_conclude(target);
	check_evicted(target, over, 4, 0, 4);
	struct usw_target *child = take_child(target);
	check_evicted(child, from, 4, 0, 4);
	check_evicted(child, over, 4, 0, 2);
	stop_both(target, child);
}

/** Memory is missing in a child because it is not copied, or not registered yet: it has not moved. */
static void fork_without(bool is_registered)
{
	void *places = map(12);
	uint64_t from = (uintptr_t)places, to = from + PAGES(4);
	struct usw_target *target = start();

	evict_at(target, from, 4);
	evict_at(target, to, 2);
	target->smaps_fd = open("/proc/self/smaps", O_RDONLY | O_CLOEXEC);
	if (is_registered) {
		fork_with(target, (void *)(uintptr_t)to, 4);
		CHECK_EQ(madvise((void *)(uintptr_t)to, PAGES(4), MADV_DONTFORK), 0);
	} else {
		fork_with(target, (void *)(uintptr_t)(to + PAGES(4)), 4);
		CHECK_EQ(munmap((void *)(uintptr_t)to, PAGES(4)), 0);
	}
	unmap(target, to, 4);
	say_moved(target, from, to, 4);
	end_with_child_of_before(target, from, to);
	munmap(places, PAGES(12));
}

/** Memory was there when the child was made, but not registered yet: it has not moved in the child. */
static void fork_before_it_was_registered(void)
{
	void *places = map(8);
	uint64_t from = (uintptr_t)places, to = from + PAGES(4);
	struct usw_target *target = start();

	evict_at(target, to, 4);
	fork_with(target, (void *)(uintptr_t)to, 4);
	unmap(target, to, 4);
	say_moved(target, from, to, 4);
	usw_event_conclude(target);
	check_evicted(target, to, 4, 0, 0);
	struct usw_target *child = take_child(target);
	check_evicted(child, to, 4, 0, 4);
	stop_both(target, child);
	munmap(places, PAGES(8));
}

/** Memory moves after a fork, and moves on from where nothing was, over what the child has. */
static void fork_before_a_chain_of_moves(void)
{
	void *places = map(12);
	uint64_t from = (uintptr_t)places, over = from + PAGES(4), by_way_of = from + PAGES(8);
	struct usw_target *target = start();

	evict_at(target, from, 4);
	evict_at(target, over, 2);
	fork_with(target, places, 8);
	CHECK_EQ(munmap((void *)(uintptr_t)by_way_of, PAGES(4)), 0);
	say_moved(target, from, by_way_of, 4);
	unmap(target, over, 4);
	say_moved(target, by_way_of, over, 4);
	end_with_child_of_before(target, from, over);
	munmap(places, PAGES(12));
}

/** Memory moves twice after a fork, each time to where nothing is, in the child neither. */
static void fork_before_moves_to_free_places(void)
{
	void *places = map(12);
	uint64_t from = (uintptr_t)places, by_way_of = from + PAGES(4), last = from + PAGES(8);
	struct usw_target *target = start();

	evict_at(target, from, 4);
	fork_with(target, places, 4);
	CHECK_EQ(munmap((void *)(uintptr_t)by_way_of, PAGES(8)), 0);
	say_moved(target, from, by_way_of, 4);
	say_moved(target, by_way_of, last, 4);
	usw_event_conclude(target);
	check_evicted(target, from, 12, 8, 12);
	struct usw_target *child = take_child(target);
	check_evicted(child, from, 12, 0, 4);
	stop_both(target, child);
	munmap(places, PAGES(4));
}

/** What was not registered yet moves after the fork to what another move has left: neither was seen. */
static void fork_before_two_moves(void)
{
	void *places = map(12);
	uint64_t from = (uintptr_t)places, over = from + PAGES(4), next = from + PAGES(8);
	struct usw_target *target = start();

	evict_at(target, from, 4);
	evict_at(target, over, 2);
	fork_with(target, places, 8);
	unmap(target, over, 4);
	say_moved(target, from, over, 4);
	say_moved(target, next, from, 4);
	end_with_child_of_before(target, from, over);
	munmap(places, PAGES(12));
}

/** Two moves are told after a fork that has seen both, the one that has made room for the other last. */
static void fork_after_two_moves(void)
{
	void *places = map(12);
	uint64_t from = (uintptr_t)places, to = from + PAGES(4), next = from + PAGES(8);
	struct usw_target *target = start();

	evict_at(target, from, 4);
	evict_at(target, to, 2);
	fork_with(target, (void *)(uintptr_t)to, 8);
	say_moved(target, from, to, 4);
	say_moved(target, to, next, 4);
	usw_event_conclude(target);
	check_evicted(target, to, 8, 0, 6);
	struct usw_target *child = take_child(target);
	check_evicted(child, to, 8, 0, 6);
	check_evicted(child, from, 4, 0, 0);
	stop_both(target, child);
	munmap(places, PAGES(12));
}

/**
 * A move is told after a fork that has seen it, and so is another one, back or on to a third place,
 * which the child cannot have seen: it was made when the first had been told.
 */
static void fork_between_moves(bool is_back)
{
	void *places = map(12);
	uint64_t from = (uintptr_t)places, to = from + PAGES(4);
	uint64_t last = is_back ? from : from + PAGES(8);
	struct usw_target *target = start();

	evict_at(target, from, 4);
	fork_with(target, (void *)(uintptr_t)to, 4);
	CHECK_EQ(munmap((void *)(uintptr_t)(to + PAGES(4)), PAGES(4)), 0);
	say_moved(target, from, to, 4);
	say_moved(target, to, last, 4);
	usw_event_conclude(target);
	check_evicted(target, last, 4, 0, 4);
	check_evicted(target, to, 4, 0, 0);
	struct usw_target *child = take_child(target);
	check_evicted(child, to, 4, 0, 4);
	check_evicted(child, last, 4, 0, 0);
	stop_both(target, child);
	munmap(places, PAGES(8));
}

/** The same, and the third place is one of which the child has what was there before. */
static void fork_between_moves_over(void)
{
	void *places = map(12);
	uint64_t from = (uintptr_t)places, to = from + PAGES(4), over = from + PAGES(8);
	struct usw_target *target = start();

	evict_at(target, from, 4);
	evict_at(target, over, 2);
	fork_with(target, (void *)(uintptr_t)to, 8);
	say_moved(target, from, to, 4);
	say_moved(target, to, from, 4);
	unmap(target, over, 4);
	say_moved(target, from, over, 4);
	usw_event_conclude(target);
	check_evicted(target, over, 4, 0, 4);
	struct usw_target *child = take_child(target);
	check_evicted(child, to, 8, 0, 6);
	check_evicted(child, from, 4, 0, 0);
	stop_both(target, child);
	munmap(places, PAGES(12));
}

/** A move that keeps the old place is told after a fork. The child has that place in any case. */
static void fork_then_keep(bool child_has_moved)
{
	void *places = map(8);
	uint64_t from = (uintptr_t)places, to = from + PAGES(4);
	struct usw_target *target = start();

	evict_at(target, from, 4);
	fork_with(target, places, child_has_moved ? 8 : 4);
	remap(target, from, to, 4);
	usw_event_conclude(target);
	check_evicted(target, from, 8, 4, 8);
	struct usw_target *child = take_child(target);
	check_evicted(child, from, 8, child_has_moved ? 4 : 0, child_has_moved ? 8 : 4);
	stop_both(target, child);
	munmap(places, PAGES(8));
}

/** The same, over a place that another such move has left, which the child has as well. */
static void fork_then_keep_twice(void)
{
	void *places = map(8);
	uint64_t from = (uintptr_t)places, to = from + PAGES(4);
	struct usw_target *target = start();

	evict_at(target, to, 4);
	remap(target, to, from, 4);
	check_evicted(target, from, 8, 0, 4);
	fork_with(target, places, 8);
	unmap(target, to, 4);
	remap(target, from, to, 4);
	usw_event_conclude(target);
	check_evicted(target, from, 8, 4, 8);
	struct usw_target *child = take_child(target);
	check_evicted(child, from, 8, 0, 4);
	stop_both(target, child);
	munmap(places, PAGES(8));
}

/** What no child gets: this one has the last two of six pages, since the advice came after its fork. */
static void fork_with_advice(void)
{
	void *places = map(8);
	uint64_t withheld = (uintptr_t)places;
	struct usw_target *target = start();

	evict_at(target, withheld, 6);
	target->smaps_fd = open("/proc/self/smaps", O_RDONLY | O_CLOEXEC);
	CHECK_EQ(madvise(places, PAGES(6), MADV_DONTFORK), 0);
	fork_with(target, (void *)(uintptr_t)(withheld + PAGES(4)), 4);
	usw_event_conclude(target);
	check_evicted(target, withheld, 6, 0, 6);
	struct usw_target *child = take_child(target);
	for (uint64_t i = 0; i < 6; i++)
		CHECK_EQ(is_evicted(child, withheld + PAGES(i)), i >= 4);
	stop_both(target, child);
	munmap(places, PAGES(8));
}

/** Memory of a child of its own, which it moves to another place, where it grows. */
struct move {
	char *from, *to;
	int uffd; /* which tells of that */
};

static struct move map_to_move(void)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMAP};
	struct move move = {
		.from = map(1),
		.to = map(4),
		.uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY),
	};

	CHECK(move.uffd >= 0 && ioctl(move.uffd, UFFDIO_API, &api) == 0);
	CHECK_EQ(usw_uffd_register(move.uffd, (uintptr_t)move.from, PAGES(1)), 0);
	return move;
}

static void *move_and_grow(void *argument)
{
	struct move *move = argument;

	CHECK(mremap(move->from, PAGES(1), PAGES(4), MREMAP_MAYMOVE | MREMAP_FIXED, move->to) ==
	      move->to);
	return NULL;
}

/** Follow a fork of which the child has told of its move before, and that move. Returns the child. */
static struct usw_target *fork_that_has_moved(struct usw_target *target, struct move *move,
					      uint64_t withheld)
{
	struct uffd_msg message = {.event = UFFD_EVENT_FORK};
	struct pollfd told = {.fd = move->uffd, .events = POLLIN};
	pthread_t mover;

	CHECK_EQ(pthread_create(&mover, NULL, move_and_grow, move), 0);
	CHECK_EQ(poll(&told, 1, 10000), 1);
	message.arg.fork.ufd = (uint32_t)move->uffd;
	usw_event_apply(target, &message, 1);
	usw_event_conclude(target);
	struct usw_target *child = take_child(target);
	child->thread = &thread;
	CHECK(is_evicted(child, withheld)); // it could not be asked
	CHECK_EQ(read(move->uffd, &message, sizeof(message)), sizeof(message));
	CHECK_EQ(message.event, UFFD_EVENT_REMAP);
	usw_event_apply(child, &message, 1);
	CHECK_EQ(pthread_join(mover, NULL), 0);
	return child;
}

/** What no child gets, of one that has told of a move, over that or not, before its fork is followed. */
static void fork_with_a_move_of_its_own(bool is_over)
{
	struct move move = map_to_move();
	char *withheld = is_over ? move.to : map(4);
	struct usw_target *target = start();

	evict_at(target, (uintptr_t)withheld, 4);
	evict_at(target, (uintptr_t)move.from, 1);
	target->smaps_fd = open("/proc/self/smaps", O_RDONLY | O_CLOEXEC);
	// This process is parent and child: what has moved is what the smaps say is withheld.
	CHECK_EQ(is_over ? madvise(move.from, PAGES(1), MADV_DONTFORK)
			 : madvise(withheld, PAGES(4), MADV_DONTFORK),
		 0);
	struct usw_target *child = fork_that_has_moved(target, &move, (uintptr_t)withheld);
	evict_at(child, OTHER, 1);
	remap(child, OTHER, (uintptr_t)move.to + PAGES(3), 1);
	usw_event_settle(child);
	for (uint64_t i = 0; i < 4; i++) {
		CHECK_EQ(is_evicted(child, (uintptr_t)move.to + PAGES(i)), i == 0 || i == 3);
		if (!is_over)
			CHECK(!is_evicted(child, (uintptr_t)withheld + PAGES(i)));
	}
	check_evicted(target, (uintptr_t)withheld, 4, 0, 4);
	stop_both(target, child);
	munmap(move.to, PAGES(4));
	munmap(withheld, PAGES(4));
}

/** What smaps says of memory that no child gets. */
static int smaps_with_withheld(uint64_t start, uint64_t count)
{
	int fd = memfd_create("smaps", MFD_CLOEXEC);

	CHECK(fd >= 0);
	dprintf(fd, "%lx-%lx rw-p 00000000 00:00 0\nVmFlags: rd wr mr mw me dc ac\n", start,
		start + PAGES(count));
	return fd;
}

/**
 * A child of which it was in doubt whether it has what no child gets has moved something right before
 * that place, and has grown into it. No event tells how far. Its own child has it from there.
 */
static void fork_with_a_move_that_has_grown(bool has_forked)
{
	struct move move = map_to_move();
	uint64_t withheld = (uintptr_t)move.to + PAGES(2);
	struct usw_target *target = start();
	void *other = map(1);

	evict_at(target, (uintptr_t)move.from, 1);
	evict_at(target, withheld, 2);
	target->smaps_fd = smaps_with_withheld(withheld, 2);
	struct usw_target *child = fork_that_has_moved(target, &move, withheld);
	struct usw_target *last = child;
	if (has_forked)
		fork_with(child, other, 1);
	usw_event_settle(child);
	if (has_forked)
		last = take_child(child);
	for (uint64_t i = 0; i < 4; i++) {
		CHECK_EQ(is_evicted(child, (uintptr_t)move.to + PAGES(i)), i == 0);
		CHECK_EQ(is_evicted(last, (uintptr_t)move.to + PAGES(i)), i == 0);
	}
	check_evicted(target, withheld, 2, 0, 2);
	if (has_forked) {
		usw_target_forget(last, 0, USW_ADDRESS_END);
		usw_target_destroy(last);
	}
	stop_both(target, child);
	munmap(move.to, PAGES(4));
	munmap(other, PAGES(1));
}

static void test_forks(void)
{
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);

	if (uffd < 0) { // no process of this machine or container may have one
		printf("skipped: userfaultfd: %s\n", strerror(errno));
		return;
	}
	close(uffd);
	fork_then_move(false);
	fork_then_move(true);
	fork_without(true);
	fork_without(false);
	fork_before_it_was_registered();
	fork_before_a_chain_of_moves();
	fork_before_moves_to_free_places();
	fork_before_two_moves();
	fork_after_two_moves();
	fork_between_moves(true);
	fork_between_moves(false);
	fork_between_moves_over();
	fork_then_keep(false);
	fork_then_keep(true);
	fork_then_keep_twice();
	fork_with_advice();
	fork_with_a_move_of_its_own(true);
	fork_with_a_move_of_its_own(false);
	fork_with_a_move_that_has_grown(false);
	fork_with_a_move_that_has_grown(true);
}

int main(void)
{
	check_start(60);
	session.thread_count = 1;
	test_remap_of_a_part_that_was_never_evicted_from();
	test_remap_cuts_what_lies_around();
	test_remap_over_what_was_evicted();
	test_unmap_and_remove();
	test_a_move_waits_for_the_one_that_has_made_room();
	test_a_move_waits_for_what_was_unmapped();
	test_a_chain_of_moves();
	test_memory_moves_on();
	test_memory_given_back_is_that_which_has_come();
	test_what_waits_in_vain();
	test_more_than_can_wait();
	test_forks();
	return 0;
}
