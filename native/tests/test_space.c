// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: a space costs what was written to it, gives back what is punched, and harms nothing else.
 * Method: write, punch and look, at the bytes and at what the kernel counts.
 */

#include <sys/mman.h>
#include <sys/stat.h>

#include "check.h"

#define SPACE_PAGES 64u

static void fill_pages(struct usw_space *space)
{
	for (uint32_t i = 0; i < SPACE_PAGES; i++)
		check_fill(space->base + i * USW_PAGE_BYTES, CHECK_TEXT, i);
}

static void check_page(const struct usw_space *space, uint32_t number, enum check_kind kind)
{
	char wanted[USW_PAGE_BYTES];

	check_fill(wanted, kind, number);
	CHECK(memcmp(space->base + number * USW_PAGE_BYTES, wanted, USW_PAGE_BYTES) == 0);
}

static void test_only_written_pages_cost(void)
{
	struct usw_space space;

	CHECK_EQ(usw_space_create(&space, "test", (uint64_t)1 << 40), 0);
	CHECK_EQ(space.reserved_bytes, (uint64_t)1 << 40);
	CHECK_EQ(usw_space_held_bytes(&space), 0);
	space.base[((uint64_t)1 << 40) - 1] = 1;
	space.base[12345] = 1;
	CHECK_EQ(usw_space_held_bytes(&space), 2 * USW_PAGE_BYTES);
	usw_space_destroy(&space);
}

static void test_punch_takes_its_range_only(void)
{
	struct usw_space space;

	CHECK_EQ(usw_space_create(&space, "test", SPACE_PAGES * USW_PAGE_BYTES), 0);
	fill_pages(&space);
	CHECK_EQ(usw_space_held_bytes(&space), SPACE_PAGES * USW_PAGE_BYTES);

	usw_space_punch(&space, 3 * USW_PAGE_BYTES, 5 * USW_PAGE_BYTES);
	CHECK_EQ(usw_space_held_bytes(&space), (SPACE_PAGES - 5) * USW_PAGE_BYTES);
	for (uint32_t i = 0; i < SPACE_PAGES; i++)
		check_page(&space, i, i >= 3 && i < 8 ? CHECK_ZERO : CHECK_TEXT);

	usw_space_punch(&space, 20 * USW_PAGE_BYTES, 0);
	check_page(&space, 20, CHECK_TEXT);

	usw_space_punch(&space, 0, SPACE_PAGES * USW_PAGE_BYTES);
	CHECK_EQ(usw_space_held_bytes(&space), 0);
	fill_pages(&space);
	check_page(&space, SPACE_PAGES - 1, CHECK_TEXT);
	usw_space_destroy(&space);
}

/** Where the file system cannot punch, the range must read as zeros all the same. */
static void test_punch_without_punching(void)
{
	struct usw_space space;

	CHECK_EQ(usw_space_create(&space, "test", SPACE_PAGES * USW_PAGE_BYTES), 0);
	fill_pages(&space);
	int fd = space.fd;
	space.fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	CHECK(space.fd >= 0);
	usw_space_punch(&space, USW_PAGE_BYTES, USW_PAGE_BYTES);
	check_page(&space, 0, CHECK_TEXT);
	check_page(&space, 1, CHECK_ZERO);
	check_page(&space, 2, CHECK_TEXT);
	close(space.fd);
	space.fd = fd;
	usw_space_destroy(&space);
}

/** What a successor relies on: the memfd alone, mapped anew, is the state. */
static void test_another_mapping_sees_the_same(void)
{
	struct usw_space space;

	CHECK_EQ(usw_space_create(&space, "test", SPACE_PAGES * USW_PAGE_BYTES), 0);
	CHECK_EQ(fcntl(space.fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	fill_pages(&space);
	char *other = mmap(NULL, space.reserved_bytes, PROT_READ, MAP_SHARED, space.fd, 0);
	CHECK(other != MAP_FAILED);
	CHECK(memcmp(other, space.base, space.reserved_bytes) == 0);
	usw_space_punch(&space, 0, USW_PAGE_BYTES);
	CHECK_EQ(other[100], 0);
	munmap(other, space.reserved_bytes);
	usw_space_destroy(&space);
}

static void test_destroy_gives_everything_back(void)
{
	struct usw_space space;
	struct stat status;

	CHECK_EQ(usw_space_create(&space, "test", SPACE_PAGES * USW_PAGE_BYTES), 0);
	int fd = space.fd;
	char *base = space.base;
	usw_space_destroy(&space);
	CHECK(fstat(fd, &status) < 0 && errno == EBADF);
	CHECK(msync(base, USW_PAGE_BYTES, MS_ASYNC) < 0 && errno == ENOMEM);
	usw_space_destroy(&space); // a second time does nothing

	struct usw_space never = {0};
	usw_space_destroy(&never);
	CHECK(fstat(0, &status) == 0); // least of all close descriptor 0
}

static void test_refused_sizes_leave_nothing(void)
{
	struct usw_space space = {.fd = 77};
	int before = open("/dev/null", O_RDONLY | O_CLOEXEC);

	CHECK(before >= 0);
	close(before);
	CHECK_THAT(-usw_space_create(&space, "test", (uint64_t)1 << 62), >, 0);
	CHECK_EQ(space.fd, 77);
	int after = open("/dev/null", O_RDONLY | O_CLOEXEC);
	CHECK_EQ(after, before); // no descriptor has leaked
	close(after);
}

static void test_contradictions_abort(void)
{
	struct usw_space space;

	CHECK_EQ(usw_space_create(&space, "test", SPACE_PAGES * USW_PAGE_BYTES), 0);
	CHECK_ABORTS(usw_space_punch(&space, 1, USW_PAGE_BYTES));
	CHECK_ABORTS(usw_space_punch(&space, 0, 1));
	CHECK_ABORTS(usw_space_punch(&space, USW_PAGE_BYTES, SPACE_PAGES * USW_PAGE_BYTES));
	CHECK_ABORTS(usw_space_punch(&space, SPACE_PAGES * USW_PAGE_BYTES, USW_PAGE_BYTES));
	usw_space_destroy(&space);
}

int main(void)
{
	check_start(60);
	test_only_written_pages_cost();
	test_punch_takes_its_range_only();
	test_punch_without_punching();
	test_another_mapping_sees_the_same();
	test_destroy_gives_everything_back();
	test_refused_sizes_leave_nothing();
	test_contradictions_abort();
	return 0;
}
