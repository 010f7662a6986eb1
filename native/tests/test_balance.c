// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: the share of what is stored moves to where it saves more time, within its bounds, and not
 * without evidence.
 * Method: faults of workloads that are known, told a step at a time.
 */

#include "balance.h"
#include "check.h"

#define MEMORY (UINT64_C(1) << 30)
#define HALF (USW_BALANCE_PARTS / 2)

static struct usw_balance balance;
static struct usw_balance_seen seen;
static uint64_t now_ns;

static void begin(uint64_t memory_bytes)
{
	now_ns = 1000000000;
	usw_balance_init(&balance, now_ns);
	// Pages are a quarter as large where they are stored.
	seen = (struct usw_balance_seen){
		.memory_bytes = memory_bytes,
		.live_bytes = memory_bytes,
		.live_objects = memory_bytes / (USW_PAGE_BYTES / 4),
	};
}

/** Some faults of each kind, and a look, `steps` times. Returns the share then. */
static uint32_t go(uint32_t steps, uint32_t near_faults, uint32_t disk_faults, uint64_t each_ns)
{
	for (uint32_t i = 0; i < steps; i++) {
		seen.near_faults += near_faults;
		seen.disk_faults += disk_faults;
		seen.disk_pages += disk_faults;
		seen.disk_ns += disk_faults * each_ns;
		now_ns += 200000000;
		usw_balance_look(&balance, &seen, now_ns);
	}
	return balance.stored_parts;
}

static void test_it_moves_to_where_it_saves_more(void)
{
	// Uniform accesses: one of sixteen would be near, a third of what is out is on the disk.
	begin(MEMORY);
	seen.disk_bytes = MEMORY / 2;
	CHECK_EQ(go(1, 60, 500, 90000), HALF + 1);
	CHECK_EQ(go(100, 60, 500, 90000), USW_BALANCE_PARTS / 16 * 13);
	// A working set that nearly fits: what has left is wanted back at once.
	CHECK_EQ(go(1, 1000, 100, 60000), USW_BALANCE_PARTS / 16 * 13 - 1);
	CHECK_EQ(go(100, 1000, 100, 60000), USW_BALANCE_PARTS / 8);
	// Nobody reads what is on the disk.
	begin(MEMORY);
	seen.disk_bytes = MEMORY * 8;
	CHECK_EQ(go(1, 100, 0, 0), HALF - 1);
}

static void test_what_a_disk_costs_counts(void)
{
	// So much that it weighs the same, then a little more or less of it.
	begin(MEMORY);
	seen.disk_bytes = MEMORY / 4;
	CHECK_EQ(go(20, 100, 100, 63000), HALF);
	CHECK_EQ(go(1, 100, 100, 100000), HALF + 1);
	CHECK_EQ(go(1, 100, 100, 40000), HALF);
	// All wait for it together, so that each waits for less time than a fault on RAM takes.
	CHECK_EQ(go(1, 100, 1000, 5000), HALF - 1);
	// A disk that takes ten milliseconds, though hardly any of it would be saved.
	seen.disk_bytes = MEMORY * 4;
	CHECK_EQ(go(1, 100, 100, 10000000), HALF);
	// More than all of it would not be saved, whatever there is.
	seen.disk_bytes = 0;
	CHECK_EQ(go(10, 6100, 100, 100000), HALF - 10);
}

static void test_pages_that_do_not_compress_are_better_resident(void)
{
	// In RAM there are as many of them, whichever side they are on; a resident one needs no fault.
	begin(MEMORY);
	seen.disk_bytes = MEMORY;
	seen.live_objects = MEMORY / USW_PAGE_BYTES;
	CHECK_EQ(go(100, 100, 1000, 100000), USW_BALANCE_PARTS / 8);
	// Also if all that was read has just come back.
	seen.disk_bytes = 0;
	CHECK_EQ(go(10, 100, 1000, 100000), USW_BALANCE_PARTS / 8);
	// A little is gained where they compress a little, and a slow disk makes that much.
	seen.disk_bytes = MEMORY;
	seen.live_bytes = MEMORY / 16 * 15;
	CHECK_EQ(go(1, 100, 1000, 100000), USW_BALANCE_PARTS / 8);
	CHECK_EQ(go(1, 100, 1000, 1000000), USW_BALANCE_PARTS / 8 + 1);
}

static void test_what_was_seen_of_a_disk_holds_for_a_while(void)
{
	begin(MEMORY);
	seen.disk_bytes = MEMORY / USW_BALANCE_PARTS;
	CHECK_EQ(go(1, 100, 1000, 50000), HALF + 1);
	// All of it has come back. To send it down again would cost the same again.
	seen.disk_bytes = 0;
	CHECK_EQ(go(200, 100, 0, 0), HALF + 1);
	CHECK_EQ(go(200, 100, 0, 0), USW_BALANCE_PARTS / 8);
	// There is enough to see that nobody reads it.
	begin(MEMORY);
	seen.disk_bytes = MEMORY / USW_BALANCE_PARTS;
	go(1, 100, 1000, 50000);
	CHECK_EQ(go(1, 100, 0, 0), HALF);
}

static void test_packing_pays_where_a_disk_is_waited_for(void)
{
	begin(MEMORY);
	CHECK(balance.packing_pays);
	go(1, 0, 100, 11000);
	CHECK(!balance.packing_pays);
	go(1, 0, 100, 15000); // neither
	CHECK(!balance.packing_pays);
	go(1, 1000, 63, 100000); // too few of them
	CHECK(!balance.packing_pays);
	go(1, 1000, 1, 100000); // with those before there are enough
	CHECK(balance.packing_pays);
	go(1, 0, 100, 15000); // neither
	CHECK(balance.packing_pays);
	// A walk: one fault waits for many pages.
	seen.disk_pages += 99 * 64;
	go(1, 0, 64, 1000000);
	CHECK(!balance.packing_pays);
}

static void test_it_waits_for_evidence(void)
{
	begin(MEMORY);
	CHECK_EQ(go(10, 1, 1, 1000000), HALF); // 20 faults: they count until there are enough
	CHECK_EQ(go(22, 1, 1, 1000000), HALF + 1);
	CHECK_EQ(go(1, 0, 0, 0), HALF + 1);
	begin(MEMORY);
	go(1, 0, 1000, 1000000);
	seen.disk_faults += 1000;
	seen.disk_ns += 1000000000;
	usw_balance_look(&balance, &seen, now_ns + 1000); // too early
	CHECK_EQ(balance.stored_parts, HALF + 1);
}

static void test_a_small_budget_keeps_something_resident(void)
{
	begin(MEMORY);
	go(100, 0, 1000, 1000000);
	CHECK_EQ(usw_balance_stored_bytes(&balance, MEMORY), MEMORY / 16 * 13);
	CHECK_EQ(usw_balance_stored_bytes(&balance, UINT64_C(64) << 20), UINT64_C(48) << 20);
	CHECK_EQ(usw_balance_stored_bytes(&balance, UINT64_C(8) << 20), UINT64_C(4) << 20);
	CHECK_EQ(usw_balance_stored_bytes(&balance, 0), 0);
	seen.disk_bytes = MEMORY;
	go(100, 1000, 0, 0);
	CHECK_EQ(usw_balance_stored_bytes(&balance, MEMORY), MEMORY / 8);
}

int main(void)
{
	check_start(10);
	test_it_moves_to_where_it_saves_more();
	test_what_a_disk_costs_counts();
	test_pages_that_do_not_compress_are_better_resident();
	test_what_was_seen_of_a_disk_holds_for_a_while();
	test_packing_pays_where_a_disk_is_waited_for();
	test_it_waits_for_evidence();
	test_a_small_budget_keeps_something_resident();
	return 0;
}
