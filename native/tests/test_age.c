// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: the sweep takes a quarter of what it looks at, and never hangs on to a threshold that lets
 * nothing through.
 * Method: sweep over pages of known age, and see what it takes and in what order.
 */

#include "age.h"
#include "check.h"
#include "pagemap.h"

#define PAGES 8192u
#define RESIDENT (PAGES / 16) /* in stamps */

static uint32_t stamps[PAGES];
static uint32_t hand;

/**
 * Look at `count` pages at time `now`. For each that is taken one comes in somewhere else. Returns how
 * many.
 */
static uint32_t sweep(struct usw_age *age, uint32_t now, uint32_t count)
{
	static uint64_t state = 1;
	uint32_t taken = 0;

	for (; count; count--, hand = (hand + 1) % PAGES) {
		uint32_t other = (uint32_t)(check_random(&state) % PAGES);
		bool takes = now - stamps[hand] >= age->threshold;

		usw_age_note(age, RESIDENT, takes);
		if (takes) {
			stamps[hand] = stamps[other];
			stamps[other] = now;
			taken++;
		}
	}
	return taken;
}

static void test_one_in_four_is_taken(void)
{
	struct usw_age age = {0};
	uint32_t taken = 0;
	uint32_t looked = 0;

	for (uint32_t i = 0; i < PAGES; i++)
		stamps[i] = 0;
	// Sixteen pages that leave and come back are one stamp.
	for (uint32_t now = RESIDENT; taken < 20 * PAGES; now++)
		for (uint32_t round = 0; round < 16;) {
			uint32_t some = sweep(&age, now, 1);

			taken += some;
			round += some;
			looked++;
		}
	CHECK_THAT(taken, >, looked / 5);
	CHECK_THAT(taken, <, looked / 2);
	// Half of what they would stay in the very order of their arrival, or more.
	CHECK_THAT(age.threshold, >, RESIDENT / 2);
	CHECK_THAT(age.threshold, <=, RESIDENT * 2);
}

static void test_a_lap_in_vain_is_the_last(void)
{
	struct usw_age age = {.threshold = 2 * RESIDENT};

	for (uint32_t i = 0; i < PAGES; i++)
		stamps[i] = 100;
	CHECK_EQ(sweep(&age, 101, 1024), 0);
	CHECK_THAT(age.threshold, >, RESIDENT);
	usw_age_end_lap(&age);
	CHECK_EQ(age.threshold, 0);
	CHECK_EQ(sweep(&age, 101, 1), 1);
}

static void test_a_lap_that_gave_keeps_the_threshold(void)
{
	struct usw_age age = {.threshold = RESIDENT};

	usw_age_end_batch(&age, 2, 1);
	usw_age_end_batch(&age, 0, 0);
	usw_age_end_lap(&age);
	CHECK_EQ(age.threshold, RESIDENT);
	usw_age_end_lap(&age);
	CHECK_EQ(age.threshold, 0);
}

static void test_what_cannot_leave_keeps_nothing_up(void)
{
	struct usw_age age = {.threshold = RESIDENT};

	for (uint32_t i = 0; i < 64; i++)
		usw_age_note(&age, RESIDENT, true);
	CHECK_THAT(age.threshold, >, RESIDENT);
	usw_age_end_batch(&age, 64, 0);
	CHECK_EQ(age.threshold, 0);
	usw_age_end_lap(&age);
	CHECK_EQ(age.threshold, 0);
}

static void test_the_threshold_is_below_a_limit_that_has_fallen(void)
{
	struct usw_age age = {.threshold = 1u << 20};

	for (uint32_t i = 0; i < 64; i++)
		usw_age_note(&age, RESIDENT, false);
	CHECK_THAT(age.threshold, <=, 2 * RESIDENT);
	for (uint32_t i = 0; i < 1u << 20; i++)
		usw_age_note(&age, UINT32_MAX, true);
	CHECK_THAT(age.threshold, <, 1u << 23); // half of what the clock of a word tells apart
}

static void test_the_threshold_falls_with_a_small_limit(void)
{
	struct usw_age age = {.threshold = 8};

	for (uint32_t i = 0; i < 8 * 64; i++)
		usw_age_note(&age, 0, false);
	CHECK_EQ(age.threshold, 0);
	for (uint32_t i = 0; i < 8 * 64; i++)
		usw_age_note(&age, 0, true);
	CHECK_EQ(age.threshold, 0);
}

static uint32_t heat_after(uint32_t heat, uint32_t distance)
{
	const uint32_t left = 0xfffff0; // the clock of a word comes round

	return usw_age_heat(usw_page_make(USW_PAGE_EVICTED, heat, 9, left), left + distance, 1600);
}

static void test_heat_is_learned_from_how_soon_a_page_comes_back(void)
{
	CHECK_EQ(heat_after(0, 0), 2);
	CHECK_EQ(heat_after(0, 99), 2);
	CHECK_EQ(heat_after(0, 100), 1);
	CHECK_EQ(heat_after(0, 399), 1);
	CHECK_EQ(heat_after(0, 400), 0);
	CHECK_EQ(heat_after(2, 1600), 2);
	CHECK_EQ(heat_after(2, 1601), 1);
	CHECK_EQ(heat_after(0, 1601), 0);
	CHECK_EQ(heat_after(2, 0), USW_HEAT_MAX);
	CHECK_EQ(heat_after(USW_HEAT_MAX, 399), USW_HEAT_MAX);
}

int main(void)
{
	check_start(20);
	test_one_in_four_is_taken();
	test_a_lap_in_vain_is_the_last();
	test_a_lap_that_gave_keeps_the_threshold();
	test_what_cannot_leave_keeps_nothing_up();
	test_the_threshold_is_below_a_limit_that_has_fallen();
	test_the_threshold_falls_with_a_small_limit();
	test_heat_is_learned_from_how_soon_a_page_comes_back();
	return 0;
}
