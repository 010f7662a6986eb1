// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: a walk is foreseen and anything else is not.
 * Method: play a program that faults where nothing was brought in, against what is forecast.
 */

#include "check.h"
#include "stream.h"

#define PAGES 65536u

/** A program's memory, as far as faults see it: which pages are there. */
struct program {
	struct usw_streams streams;
	bool present[PAGES];
	uint32_t faults;
	uint32_t brought;
	uint32_t proven;
};

/** Touch a page; if it is missing, fault and bring in what is forecast. */
static void touch(struct program *program, uint32_t thread_id, uint64_t page)
{
	if (program->present[page])
		return;

	struct usw_forecast forecast = usw_streams_note(&program->streams, thread_id, page);
	CHECK_THAT(forecast.window, <=, USW_STREAM_WINDOW_MAX);
	program->faults++;
	program->proven += forecast.proven;
	program->present[page] = true;
	for (uint32_t i = 1; i <= forecast.window; i++) {
		uint64_t ahead = page + (uint64_t)(forecast.stride * (int64_t)i);

		if (ahead < PAGES) {
			program->present[ahead] = true;
			program->brought++;
		}
	}
}

static void walk(int64_t stride, uint64_t start, uint32_t count)
{
	static struct program program;

	memset(&program, 0, sizeof(program));
	for (uint32_t i = 0; i < count; i++)
		touch(&program, 1, start + (uint64_t)(stride * (int64_t)i));
	// A few faults until it is believed, then one in a window and its trip-wire.
	CHECK_THAT(program.faults, <=, 12 + count / (USW_STREAM_WINDOW_MAX + 1));
	CHECK_THAT(program.brought, >=, count - program.faults - USW_STREAM_WINDOW_MAX);
	CHECK_THAT(program.proven + 2 * USW_STREAM_WINDOW_MAX, >=, program.brought);
}

static void test_walks_are_foreseen(void)
{
	walk(1, 100, 8000);
	walk(-1, 60000, 8000);
	walk(7, 0, 8000);
	walk(-7, 60000, 8000);
	walk(200, 0, 300);
}

static void test_walks_of_several_arrays_at_once(void)
{
	static struct program program;

	for (uint32_t i = 0; i < 8000; i++) {
		touch(&program, 1, i);
		touch(&program, 1, 20000 + 2 * i);
		touch(&program, 1, 60000 - i);
		touch(&program, 2, 40000 + i);
	}
	CHECK_THAT(program.faults, <=, 4 * (12 + 8000 / (USW_STREAM_WINDOW_MAX + 1)));
}

static void test_random_access_is_left_alone(void)
{
	static struct program program;
	uint64_t x = 1;

	for (uint32_t i = 0; i < 20000; i++) {
		x = x * 6364136223846793005u + 1442695040888963407u;
		memset(program.present, 0, sizeof(program.present));
		touch(&program, 1, (x >> 33) % PAGES);
	}
	CHECK_THAT(program.brought, <=, program.faults / 20);
}

static void test_a_walk_among_random_accesses(void)
{
	static struct program program;
	uint64_t x = 1;

	for (uint32_t i = 0; i < 8000; i++) {
		x = x * 6364136223846793005u + 1442695040888963407u;
		touch(&program, 1, i);
		touch(&program, 1, 32768 + (x >> 33) % 32768);
	}
	CHECK_THAT(program.proven, >=, 6000);
}

static void test_the_end_of_a_walk_is_noticed(void)
{
	struct usw_streams streams = {0};
	uint64_t page = 1000;
	struct usw_forecast forecast = {0};

	for (uint32_t i = 0; i < 20; i++) {
		forecast = usw_streams_note(&streams, 1, page);
		page += forecast.window + 1;
	}
	CHECK_EQ(forecast.window, USW_STREAM_WINDOW_MAX);
	forecast = usw_streams_note(&streams, 1, page + 3);
	CHECK_THAT(forecast.window, <=, USW_STREAM_WINDOW_MAX / 4);
	for (uint32_t i = 0; i < 8; i++)
		forecast = usw_streams_note(&streams, 1, page + 3 + 5 * (i % 2 ? i : 20 - i));
	CHECK_EQ(forecast.window, 0);
}

static void test_the_same_fault_again_changes_nothing(void)
{
	struct usw_streams streams = {0};
	struct usw_forecast first = {0};

	for (uint64_t page = 0; page < 5; page++)
		first = usw_streams_note(&streams, 1, page);
	CHECK_THAT(first.window, >, 0);
	struct usw_forecast again = usw_streams_note(&streams, 1, 4);
	CHECK_EQ(again.window, first.window);
	CHECK_EQ(again.proven, 0);
}

int main(void)
{
	check_start(60);
	test_walks_are_foreseen();
	test_walks_of_several_arrays_at_once();
	test_random_access_is_left_alone();
	test_a_walk_among_random_accesses();
	test_the_end_of_a_walk_is_noticed();
	test_the_same_fault_again_changes_nothing();
	return 0;
}
