// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: a page that the program gives back is left alone until it is really gone, and not longer.
 * Method: this process's own memory and page map; the order of the kernel, event first and pages
 * later, is played by hand.
 */

#include <sys/mman.h>

#include "check.h"
#include "leaving.h"

#define PAGES(n) ((uint64_t)(n) * USW_PAGE_BYTES)
#define COUNT 16u
#define SECOND_NS 1000000000u

static struct usw_leaving leaving;
static int pagemap_fd;
static char *memory;
static uint64_t base;
static uint64_t now_ns = 100 * (uint64_t)SECOND_NS;

static void start(void)
{
	usw_leaving_init(&leaving);
	memory = mmap(NULL, PAGES(COUNT), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		      0);
	CHECK(memory != MAP_FAILED);
	memset(memory, 1, PAGES(COUNT));
	base = (uintptr_t)memory;
}

static void stop(void)
{
	munmap(memory, PAGES(COUNT));
	usw_leaving_deinit(&leaving);
}

static bool has(unsigned int page)
{
	return usw_leaving_has(&leaving, base + PAGES(page), base + PAGES(page + 1));
}

static void settle(uint64_t later_ns)
{
	now_ns += later_ns;
	usw_leaving_settle(&leaving, pagemap_fd, now_ns);
}

static void give_back(unsigned int first, unsigned int count)
{
	CHECK_EQ(madvise(memory + PAGES(first), PAGES(count), MADV_DONTNEED), 0);
}

static void test_until_it_is_gone(void)
{
	start();
	CHECK(!has(4));
	CHECK(usw_leaving_note(&leaving, pagemap_fd, base + PAGES(4), base + PAGES(8)));
	CHECK(!has(3) && has(4) && has(7) && !has(8));
	CHECK(usw_leaving_has(&leaving, base, base + PAGES(COUNT)));
	settle(SECOND_NS / 100);
	CHECK(has(4) && has(7));

	give_back(4, 2);
	CHECK(has(4)); // nobody has looked
	settle(SECOND_NS / 100);
	CHECK(!has(4) && !has(5) && has(6) && has(7));
	give_back(6, 2);
	settle(SECOND_NS / 100);
	CHECK(!atomic_load(&leaving.any));
	stop();
}

static void test_what_was_not_there(void)
{
	start();
	give_back(0, COUNT);
	CHECK(usw_leaving_note(&leaving, pagemap_fd, base, base + PAGES(COUNT)));
	CHECK(!atomic_load(&leaving.any));
	// Nothing is known of a target without a page map.
	CHECK(usw_leaving_note(&leaving, -1, base, base + PAGES(COUNT)));
	CHECK(has(0) && has(COUNT - 1));
	settle(SECOND_NS / 100);
	CHECK(!atomic_load(&leaving.any));
	stop();
}

static void test_what_came_back(void)
{
	start();
	CHECK(usw_leaving_note(&leaving, pagemap_fd, base, base + PAGES(COUNT)));
	usw_leaving_returned(&leaving, base + PAGES(3), base + PAGES(5));
	CHECK(has(2) && !has(3) && !has(4) && has(5));
	settle(SECOND_NS / 100);
	CHECK(has(2) && !has(3) && !has(4) && has(5));
	stop();
}

static void test_what_stays(void)
{
	start();
	CHECK(usw_leaving_note(&leaving, pagemap_fd, base, base + PAGES(1)));
	// Time alone does not do it, nor do looks alone.
	for (unsigned int i = 0; i < USW_LEAVING_LOOKS; i++)
		settle(3 * (uint64_t)USW_LEAVING_NS / USW_LEAVING_LOOKS);
	CHECK(has(0));
	for (unsigned int i = 0; i < 3 * USW_LEAVING_LOOKS; i++)
		settle(USW_LEAVING_NS / 4 / USW_LEAVING_LOOKS);
	CHECK(has(0));
	for (unsigned int i = 0; i < 3 * USW_LEAVING_LOOKS; i++)
		settle(USW_LEAVING_NS / USW_LEAVING_LOOKS);
	CHECK(!has(0));
	stop();
}

int main(void)
{
	check_start(60);
	pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	CHECK(pagemap_fd >= 0);
	test_until_it_is_gone();
	test_what_was_not_there();
	test_what_came_back();
	test_what_stays();
	return 0;
}
