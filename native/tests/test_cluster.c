// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: neighbours come in where they are wanted, and soon no more where they are not.
 * Method: play a program under a limit, pages leaving first in, first out, against what is noted.
 */

#include "check.h"
#include "cluster.h"

#define PAGES 65536u
#define RESIDENT (PAGES / 2)
#define FIRST_PAGE (1ull << 34) /* where the program's memory is; any place will do */

/** A program's memory, as far as faults see it. */
struct program {
	struct usw_clusters clusters;
	bool present[PAGES];
	uint32_t queue[PAGES]; /* the present ones, oldest first from `out` on */
	uint64_t in, out;
	uint64_t random;
	uint32_t faults;
	uint32_t brought; /* without a fault */
	uint32_t trials;
};

static struct program program;

static uint32_t any_below(uint32_t bound)
{
	program.random = program.random * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)((program.random >> 32) * bound >> 32);
}

static void bring_in(uint32_t page)
{
	if (program.in - program.out == RESIDENT)
		program.present[program.queue[program.out++ % PAGES]] = false;
	program.queue[program.in++ % PAGES] = page;
	program.present[page] = true;
}

static void bring_cluster(uint32_t page, bool is_trial)
{
	uint32_t start = page / USW_CLUSTER_PAGES * USW_CLUSTER_PAGES;
	uint32_t missing[USW_CLUSTER_PAGES];
	uint32_t count = 0;

	for (uint32_t at = start; at < start + USW_CLUSTER_PAGES; at++)
		if (at != page && !program.present[at])
			missing[count++] = at;
	uint32_t left_out = is_trial && count ? usw_clusters_choose(&program.clusters, count)
					      : count;
	CHECK_THAT(left_out, <=, count);
	if (left_out < count) {
		usw_clusters_leave_out(&program.clusters, FIRST_PAGE + missing[left_out]);
		program.trials++;
	}
	for (uint32_t i = 0; i < count; i++) {
		if (i == left_out)
			continue;
		bring_in(missing[i]);
		program.brought++;
	}
}

static void touch(uint32_t page)
{
	bool is_trial;

	if (program.present[page])
		return;
	program.faults++;
	if (usw_clusters_note(&program.clusters, FIRST_PAGE + page, RESIDENT, &is_trial))
		bring_cluster(page, is_trial);
	if (!program.present[page])
		bring_in(page);
}

/** Forget what was counted, and what is present, but not what was learned. */
static void leave_all(void)
{
	memset(program.present, 0, sizeof(program.present));
	program.in = program.out = 0;
	program.faults = program.brought = program.trials = 0;
}

static void begin(void)
{
	memset(&program, 0, sizeof(program));
	usw_clusters_init(&program.clusters);
	program.random = 1;
	for (uint32_t page = 0; page < PAGES; page++)
		touch(page);
	leave_all();
}

/** Touch all of a part of the memory, in no order. */
static void turn_to(uint32_t start, uint32_t pages)
{
	for (uint32_t i = 0; i < 6 * pages; i++)
		touch(start + any_below(pages));
}

static void test_another_part_of_memory_comes_in_clusters(void)
{
	begin();
	for (uint32_t i = 0; i < 8; i++)
		turn_to(i * PAGES / 8, PAGES / 8);
	CHECK_THAT(program.faults, <, PAGES / 2);
	CHECK_THAT(program.brought, >, PAGES / 2);
	CHECK_THAT(program.faults + program.brought, <=, PAGES + PAGES / 8);
	CHECK_THAT(usw_clusters_wanted(&program.clusters, 100), >=, 90);
}

static void test_even_faults_are_left_alone(void)
{
	begin();
	for (uint32_t i = 0; i < 4 * PAGES; i++) // until it is as full as it may be
		touch(any_below(PAGES));
	program.faults = program.brought = 0;
	for (uint32_t i = 0; i < 16 * PAGES; i++)
		touch(any_below(PAGES));
	CHECK_THAT(program.brought, <, program.faults / 100);
}

/** Dense, but only every eighth page is ever touched: what comes in with it is of no use. */
static void touch_some(uint32_t rounds)
{
	for (uint32_t i = 0; i < rounds; i++)
		touch(any_below(PAGES / 16) * 16 + any_below(2) * 8);
}

static void test_what_nobody_wants_comes_no_more(void)
{
	begin();
	for (uint32_t round = 0; round < 40; round++) {
		leave_all();
		touch_some(2 * PAGES);
	}
	CHECK_THAT(program.brought, <, program.faults);
	CHECK_THAT(usw_clusters_wanted(&program.clusters, 100), <, 50);
	CHECK_THAT(program.trials, >, 0);
}

static void test_a_change_of_mind_is_noticed(void)
{
	test_what_nobody_wants_comes_no_more();
	for (uint32_t round = 0; round < 40; round++) {
		leave_all();
		turn_to(round % 8 * PAGES / 8, PAGES / 8);
	}
	CHECK_THAT(program.faults, <, PAGES / 16);
	CHECK_THAT(usw_clusters_wanted(&program.clusters, 100), >=, 90);
}

static void test_a_page_is_left_out_once(void)
{
	struct usw_clusters clusters;
	uint64_t page = FIRST_PAGE;
	bool is_trial = false;

	usw_clusters_init(&clusters);
	for (uint32_t i = 0; !is_trial; i++) {
		CHECK_THAT(i, <, 100);
		usw_clusters_note(&clusters, page + i % 8, RESIDENT, &is_trial);
	}
	usw_clusters_leave_out(&clusters, page + 3);
	uint32_t before = usw_clusters_wanted(&clusters, 1u << 16);
	usw_clusters_note(&clusters, page + 3, RESIDENT, &is_trial);
	uint32_t after = usw_clusters_wanted(&clusters, 1u << 16);
	CHECK_THAT(after, >, before);
	usw_clusters_note(&clusters, page + 3, RESIDENT, &is_trial);
	CHECK_EQ(usw_clusters_wanted(&clusters, 1u << 16), after);
}

static void test_without_a_limit(void)
{
	struct usw_clusters clusters;
	bool is_trial;

	usw_clusters_init(&clusters);
	for (uint64_t i = 0; i < 100000; i++)
		usw_clusters_note(&clusters, (1ull << 35) - 1 - i * 8, INT64_MAX / 2, &is_trial);
	for (uint64_t i = 0; i < 1000; i++)
		usw_clusters_note(&clusters, i, 0, &is_trial);
}

int main(void)
{
	check_start(60);
	test_another_part_of_memory_comes_in_clusters();
	test_even_faults_are_left_alone();
	test_what_nobody_wants_comes_no_more();
	test_a_change_of_mind_is_noticed();
	test_a_page_is_left_out_once();
	test_without_a_limit();
	return 0;
}
