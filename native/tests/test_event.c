// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: after every change of layout the page map and the list of registered ranges say the same:
 * an evicted page is on the list, or its word would be forgotten at the next registration.
 * Method: a target without a process, words put in by hand, events as the kernel sends them.
 */

#include "check.h"
#include "event.h"
#include "session.h"

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

/** Pages [first, first + count) from BASE are out, and their range is on the list. */
static void evict(struct usw_target *target, uint64_t first, uint64_t count)
{
	for (uint64_t i = first; i < first + count; i++) {
		usw_page_word *word = usw_pagemap_make(&target->pagemap, BASE + PAGES(i));
		uint32_t id;

		CHECK(word);
		CHECK_EQ(usw_vswap_alloc(&session.vswap, USW_BACKEND_ZERO, 0, 0, &id), 0);
		atomic_store(word, usw_page_make(USW_PAGE_EVICTED, 0, id, 0));
	}
	CHECK(usw_ranges_add(&target->registered, BASE + PAGES(first),
			     BASE + PAGES(first + count)));
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
	remap(target, BASE, BASE + PAGES(8), 4);
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

int main(void)
{
	check_start(60);
	test_remap_of_a_part_that_was_never_evicted_from();
	test_remap_cuts_what_lies_around();
	test_remap_over_what_was_evicted();
	test_unmap_and_remove();
	return 0;
}
