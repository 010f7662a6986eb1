// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: what is registered at once ends where mappings end; a target that reads along in what it has
 * handed in keeps nobody from the end of it.
 * Method: this process's own mappings; a border of the range in each kind of them, and a thread that
 * goes back to the start without end.
 */

#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "check.h"
#include "maps.h"

#define PAGES(n) ((uint64_t)(n) * USW_PAGE_BYTES)
#define COUNT 16u
#define READINGS 5
#define MANY 4000u

static int maps_fd;
static uint64_t base;

static void map(unsigned int first, unsigned int count, int protection, int flags)
{
	void *wanted = (void *)(uintptr_t)(base + PAGES(first));

	CHECK(mmap(wanted, PAGES(count), protection, flags | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
	      wanted);
}

/** Gaps around, so that nothing of the process touches what is mapped here. */
static void start(void)
{
	char *place = mmap(NULL, PAGES(COUNT), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(place != MAP_FAILED);
	base = (uintptr_t)place;
	CHECK_EQ(munmap(place, PAGES(COUNT)), 0);
}

static void stop(void)
{
	CHECK_EQ(munmap((void *)(uintptr_t)base, PAGES(COUNT)), 0);
}

static void check_whole(unsigned int first, unsigned int end, unsigned int whole_first,
			unsigned int whole_end)
{
	struct usw_range asked = {base + PAGES(first), base + PAGES(end)};
	struct usw_range whole = usw_maps_whole(maps_fd, asked);

	CHECK_EQ(whole.start, base + PAGES(whole_first));
	CHECK_EQ(whole.end, base + PAGES(whole_end));
}

static void test_borders_in_gaps_stay(void)
{
	start();
	map(4, 4, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	check_whole(4, 8, 4, 8);
	check_whole(2, 10, 2, 10);
	check_whole(8, 10, 8, 10);
	check_whole(2, 4, 2, 4);
	stop();
}

static void test_memory_is_taken_whole(void)
{
	start();
	map(2, 4, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	map(8, 4, PROT_NONE, MAP_PRIVATE | MAP_NORESERVE);
	check_whole(4, 10, 2, 12);
	check_whole(3, 4, 2, 6);
	check_whole(7, 9, 7, 12);
	stop();
}

static void test_anything_else_is_left_out(void)
{
	start();
	map(2, 4, PROT_READ | PROT_WRITE, MAP_SHARED);
	map(6, 4, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	map(10, 4, PROT_READ, MAP_PRIVATE);
	check_whole(4, 12, 6, 10);
	struct usw_range inside = {base + PAGES(3), base + PAGES(5)};
	struct usw_range left = usw_maps_whole(maps_fd, inside);
	CHECK(left.start >= left.end);
	stop();
}

static _Atomic bool stopping;

static void *go_back(void *argument)
{
	while (!atomic_load(&stopping))
		lseek(*(int *)argument, 0, SEEK_SET);
	return NULL;
}

static void test_the_place_in_a_file_is_ours(void)
{
	struct usw_maps_advised advised;
	int smaps_fd = open("/proc/self/smaps", O_RDONLY | O_CLOEXEC);
	char *memory =
		mmap(NULL, PAGES(MANY), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pthread_t other;

	CHECK(smaps_fd >= 0 && memory != MAP_FAILED);
	for (unsigned int i = 0; i < MANY; i += 2) // so many mappings that it takes a while
		CHECK_EQ(madvise(memory + PAGES(i), PAGES(1), MADV_WIPEONFORK), 0);
	CHECK_EQ(pthread_create(&other, NULL, go_back, &smaps_fd), 0);
	for (int i = 0; i < READINGS; i++) {
		CHECK_EQ(usw_maps_advised(smaps_fd, &advised), 0);
		// Not all: what it reads along is found by bytes, and this process maps more meanwhile.
		CHECK_THAT(advised.wiped.count, >, MANY / 4);
		usw_maps_advised_free(&advised);
	}
	atomic_store(&stopping, true);
	pthread_join(other, NULL);
	munmap(memory, PAGES(MANY));
	close(smaps_fd);
}

int main(void)
{
	check_start(60);
	test_the_place_in_a_file_is_ours();
	maps_fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	CHECK(maps_fd >= 0);
	struct procmap_query any = {.size = sizeof(any),
				    .query_flags = PROCMAP_QUERY_COVERING_OR_NEXT_VMA};
	if (ioctl(maps_fd, PROCMAP_QUERY, &any) < 0) {
		printf("this kernel answers no questions about mappings\n");
		return 77;
	}
	test_borders_in_gaps_stay();
	test_memory_is_taken_whole();
	test_anything_else_is_left_out();
	return 0;
}
