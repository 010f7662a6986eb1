// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: nothing is copied to a guard, what has left is void where one is, and nothing else is.
 * Method: guards in this program's own memory, a target that has its pagemap, words put in by hand.
 */

#include <sys/ioctl.h>
#include <sys/mman.h>

#include "answer.h"
#include "check.h"
#include "guard.h"
#include "session.h"
#include "uffd.h"

#define COUNT 64u
#define PAGES(n) ((uint64_t)(n) * USW_PAGE_BYTES)

static struct usw_session session;
static struct usw_fault_thread thread;
static struct usw_target *target;
static uint64_t base;

static void start(void)
{
	CHECK_EQ(usw_nodes_create(&session.nodes, 1024), 0);
	CHECK_EQ(usw_vswap_create(&session.vswap, &session.segments, 1024), 0);
	session.has_guards = true;
	thread.kick_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
	target = usw_target_create(&session);
	CHECK(target && thread.kick_fd >= 0);
	target->thread = &thread;
	target->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	target->pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	CHECK(target->uffd >= 0 && target->pagemap_fd >= 0);
	CHECK_EQ(usw_uffd_api(target->uffd, 0), 0);
	atomic_store(&target->has_hands, true);
	void *memory = mmap(NULL, PAGES(COUNT), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			    -1, 0);
	CHECK(memory != MAP_FAILED);
	base = (uintptr_t)memory;
}

static void stop(void)
{
	munmap((void *)(uintptr_t)base, PAGES(COUNT));
	usw_target_forget(target, 0, USW_ADDRESS_END);
	CHECK_EQ(atomic_load(&session.vswap.live_count), 0);
	usw_target_destroy(target);
	close(thread.kick_fd);
	usw_vswap_destroy(&session.vswap);
	usw_nodes_destroy(&session.nodes);
}

static void install(uint32_t page, uint32_t count)
{
	CHECK_EQ(madvise((void *)(uintptr_t)(base + PAGES(page)), PAGES(count), MADV_GUARD_INSTALL),
		 0);
}

static void put(uint32_t page, enum usw_page_state state)
{
	usw_page_word *word = usw_pagemap_make(&target->pagemap, base + PAGES(page));
	uint32_t id;

	CHECK(word);
	CHECK_EQ(usw_vswap_alloc(&session.vswap, USW_BACKEND_ZERO, 0, 0, &id), 0);
	atomic_store(word, usw_page_make(state, 0, id, 0));
}

static enum usw_page_state state_of(uint32_t page)
{
	usw_page_word *word = usw_pagemap_find(&target->pagemap, base + PAGES(page));

	return word ? usw_page_state(atomic_load(word)) : USW_PAGE_NONE;
}

static void test_a_window_ends_before_a_guard(void)
{
	start();
	CHECK_EQ(usw_guards_before(target, base, COUNT), COUNT);
	install(10, 2);
	CHECK_EQ(usw_guards_before(target, base, COUNT), 10);
	CHECK_EQ(usw_guards_before(target, base, 10), 10);
	CHECK_EQ(usw_guards_before(target, base + PAGES(11), 5), 0);
	CHECK_EQ(usw_guards_before(target, base + PAGES(12), 5), 5);
	CHECK_EQ(usw_guards_before(target, base + PAGES(12), 0), 0);
	*(volatile char *)(base + PAGES(3)) = 1; // the kernel says itself that it is there
	CHECK_EQ(usw_guards_before(target, base, COUNT), 10);
	stop();
}

static void test_where_nobody_can_look_nothing_is_copied(void)
{
	start();
	atomic_store(&target->has_hands, false);
	CHECK_EQ(usw_guards_clip(target, base, COUNT), 0);
	session.has_guards = false;
	CHECK_EQ(usw_guards_clip(target, base, COUNT), COUNT);
	stop();
}

static void test_only_what_a_guard_replaces_is_forgotten(void)
{
	start();
	for (uint32_t page = 0; page < COUNT; page++)
		put(page, page % 8 ? USW_PAGE_EVICTED : USW_PAGE_RESIDENT);
	install(10, 1);
	install(20, 10);
	CHECK_EQ(usw_guards_clip(target, base, 10), 10);
	CHECK_EQ(state_of(10), USW_PAGE_EVICTED);
	CHECK_EQ(usw_guards_clip(target, base + PAGES(9), 20), 1);
	for (uint32_t page = 0; page < COUNT; page++) {
		bool is_guard = page == 10 || (page >= 20 && page < 30);

		CHECK_EQ(state_of(page), page % 8 == 0 ? USW_PAGE_RESIDENT
					 : is_guard    ? USW_PAGE_NONE
						       : USW_PAGE_EVICTED);
	}
	stop();
}

/** The words may be of memory that was there before. */
static void test_nothing_is_forgotten_while_the_kernel_tells_of_a_change(void)
{
	start();
	put(10, USW_PAGE_EVICTED);
	install(10, 1);
	int uffd = target->uffd;
	target->uffd = -1; // gives no answer, as one with an event that is unread
	CHECK_EQ(usw_guards_clip(target, base, COUNT), 10);
	CHECK_EQ(state_of(10), USW_PAGE_EVICTED);
	target->uffd = uffd;
	usw_guards_forget(target, base);
	CHECK_EQ(state_of(10), USW_PAGE_NONE);
	stop();
}

static void test_the_sweep_has_it_forgotten_and_takes_what_is_present(void)
{
	struct page_region found[8];
	uint64_t walk_end;

	start();
	*(volatile char *)base = 1;
	*(volatile char *)(base + PAGES(40)) = 1;
	install(5, 1);
	install(50, 5);
	put(52, USW_PAGE_EVICTED);
	int count = usw_maps_present(target->pagemap_fd, base, base + PAGES(COUNT), found, 8,
				     &walk_end);
	CHECK_EQ(count, 4);
	CHECK_EQ(usw_guards_take_out(target, found, count), 2);
	CHECK_EQ(found[0].start, base);
	CHECK_EQ(found[1].start, base + PAGES(40));
	CHECK_EQ(atomic_load(&target->guard_asked), base + PAGES(50));
	CHECK(atomic_load(&thread.is_asked));
	usw_guards_forget(target, atomic_load(&target->guard_asked));
	CHECK_EQ(state_of(52), USW_PAGE_NONE);
	stop();
}

/** Whoever waited may have had its answer, and another thread has made a guard of the page. */
static void test_a_fault_that_has_waited_fills_no_guard(void)
{
	start();
	struct usw_fault fault = {.page = base + PAGES(10), .is_again = true};

	atomic_store(&session.limit_pages, 1000);
	CHECK_EQ(usw_uffd_register(target->uffd, base, PAGES(COUNT)), 0);
	put(10, USW_PAGE_EVICTED);
	install(10, 2);
	CHECK_EQ(usw_answer(&thread, target, &fault), USW_DROPPED);
	CHECK_EQ(state_of(10), USW_PAGE_NONE);
	fault.page = base + PAGES(11);
	CHECK_EQ(usw_answer(&thread, target, &fault), USW_DROPPED);
	CHECK_EQ(usw_guards_before(target, base + PAGES(10), 2), 0);
	CHECK_EQ(usw_guards_before(target, base + PAGES(11), 1), 0);
	stop();
}

int main(void)
{
	check_start(60);
	if (!usw_guards_exist()) {
		printf("skipped: MADV_GUARD_INSTALL is not in this kernel (6.13)\n");
		return 77;
	}
	test_a_window_ends_before_a_guard();
	test_where_nobody_can_look_nothing_is_copied();
	test_only_what_a_guard_replaces_is_forgotten();
	test_nothing_is_forgotten_while_the_kernel_tells_of_a_change();
	test_the_sweep_has_it_forgotten_and_takes_what_is_present();
	test_a_fault_that_has_waited_fills_no_guard();
	return 0;
}
