// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: targets give in proportion to what they have, and nobody pays for one that gives nothing.
 * Method: some thousand turns between targets of known sizes, and who had them.
 */

#include "check.h"
#include "session.h"

#define TARGETS 4u
#define TURNS 100000u

static struct usw_session session;
static struct usw_target targets[TARGETS];
static uint32_t turns[TARGETS];

static void begin(const uint64_t pages[TARGETS])
{
	memset(&session, 0, sizeof(session));
	memset(targets, 0, sizeof(targets));
	memset(turns, 0, sizeof(turns));
	session.targets = targets;
	atomic_store(&session.targets_now, TARGETS);
	for (uint32_t i = 0; i < TARGETS; i++) {
		atomic_store(&targets[i].state, USW_TARGET_LIVE);
		atomic_store(&targets[i].anon_pages, pages[i]);
		targets[i].next = i + 1 < TARGETS ? &targets[i + 1] : NULL;
	}
}

/** As the sweep does: where one gives nothing the next is asked. `mute` is none if TARGETS. */
static void take_turns(uint32_t count, uint32_t mute)
{
	for (bool barren = false; count--;) {
		struct usw_target *target = barren ? usw_turn_next(&session)
						   : usw_turn_debtor(&session);
		uint32_t i = (uint32_t)(target - targets);

		barren = i == mute;
		turns[i]++;
		usw_turn_end(target, !barren, true);
	}
}

/** Of the turns of the others, how many are those of target `i`, in percent. */
static uint32_t percent(uint32_t i, uint32_t mute)
{
	uint32_t others = TURNS - (mute < TARGETS ? turns[mute] : 0);

	return (uint32_t)(turns[i] * 100ull / others);
}

static void test_in_proportion(void)
{
	begin((const uint64_t[]){6000, 500, 3000, 500});
	take_turns(TURNS, TARGETS);
	CHECK_THAT(percent(0, TARGETS), >=, 58);
	CHECK_THAT(percent(0, TARGETS), <=, 62);
	CHECK_THAT(percent(1, TARGETS), <=, 6);
	CHECK_THAT(percent(2, TARGETS), >=, 28);
	CHECK_THAT(percent(3, TARGETS), >=, 4);
}

static void test_nobody_pays_for_one_that_gives_nothing(void)
{
	begin((const uint64_t[]){50000, 500, 3500, 1000});
	take_turns(TURNS, 0);
	CHECK_THAT(turns[0], >, 0); // something of it may be had later
	CHECK_THAT(percent(1, 0), <=, 20);
	CHECK_THAT(percent(2, 0), >=, 60);
	CHECK_THAT(percent(3, 0), <=, 25);
}

static void test_one_that_gives_again_is_asked_as_before(void)
{
	begin((const uint64_t[]){6000, 500, 3000, 500});
	take_turns(1000, 0);
	memset(turns, 0, sizeof(turns));
	take_turns(TURNS, TARGETS);
	CHECK_THAT(percent(0, TARGETS), >=, 55);
}

static void test_one_that_has_ended_is_not_asked(void)
{
	begin((const uint64_t[]){6000, 500, 3000, 500});
	atomic_store(&targets[0].state, USW_TARGET_RETIRED);
	take_turns(TURNS, TARGETS);
	CHECK_THAT(turns[0], <=, 1); // before it was known who has most
	CHECK_THAT(percent(2, TARGETS), >=, 70);
}

static void test_one_that_leaves_has_no_turn(void)
{
	begin((const uint64_t[]){1, 1, 1, 1});
	CHECK(usw_turn_next(&session) == &targets[0]);
	usw_turn_leave(&session, &targets[1]);
	targets[0].next = &targets[2];
	CHECK(usw_turn_next(&session) == &targets[2]);
	CHECK(usw_turn_next(&session) == &targets[3]);
	CHECK(usw_turn_next(&session) == &targets[0]);
	session.targets = NULL;
	session.reclaim.turns.next = NULL;
	CHECK(!usw_turn_next(&session) && !usw_turn_debtor(&session));
}

int main(void)
{
	check_start(20);
	test_in_proportion();
	test_nobody_pays_for_one_that_gives_nothing();
	test_one_that_gives_again_is_asked_as_before();
	test_one_that_has_ended_is_not_asked();
	test_one_that_leaves_has_no_turn();
	return 0;
}
