// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: whatever the disk has answered is looked at while something is left to look at, and no
 * longer: a fault thread neither sleeps on a page that somebody waits for nor spins when there is
 * none. What a walk will need is asked for once, and upwards.
 * Method: the answers alone, with reads in any stage and everything around it made of straw; a
 * message that comes in its middle calls a page from reserve that was passed already.
 */

#include "answer.h"
#include "check.h"
#include "diskanswer.h"
#include "fault.h"
#include "guard.h"
#include "session.h"
#include "uffd.h"

#define UNUSED __attribute__((unused))
#define ASKED_MAX 128u

static struct usw_session session;
static struct usw_fault_thread thread;
static struct usw_disk_faults disk;
static struct usw_target target;
static usw_page_word words[USW_DISK_READS_MAX];
static struct usw_descriptor descriptors[USW_DISK_READS_MAX + 1];
static struct usw_segment headers[2];

static int called = -1;           /* a read that the next message calls from reserve */
static bool has_room;             /* for what is handed in */
static uint64_t guard;            /* a page that must not be copied to; 0: none */
static uint32_t settled;          /* reads */
static uint32_t handed_in;        /* of them */
static uint32_t unasked;          /* of them, ahead of a fault */
static uint64_t last_page;        /* that was handed in */
static uint64_t asked[ASKED_MAX]; /* pages, of a disk, since begin() */
static uint32_t asked_count;

// --- What is around it --------------------------------------------------------------------------

struct usw_disk_faults *usw_diskfault_create(UNUSED struct usw_session *s)
{
	return &disk;
}

void usw_diskfault_destroy(UNUSED struct usw_disk_faults *faults)
{
}

struct usw_disk_read *usw_diskfault_find(struct usw_disk_faults *faults,
					 UNUSED const struct usw_target *t, uint64_t page)
{
	for (uint32_t i = 0; i < asked_count; i++)
		if (asked[i] == page)
			return &faults->at[0];
	return NULL;
}

struct usw_disk_read *usw_diskfault_begin(struct usw_disk_faults *faults,
					  UNUSED struct usw_session *s, UNUSED struct usw_target *t,
					  const struct usw_fault *fault, bool is_ahead,
					  UNUSED uint32_t id,
					  UNUSED const struct usw_disk_place *place)
{
	CHECK(is_ahead && asked_count < ASKED_MAX);
	asked[asked_count++] = fault->page;
	return &faults->at[0];
}

void usw_diskfault_call(struct usw_disk_faults *faults, struct usw_disk_read *read)
{
	faults->is_ripe |= read->is_reserve;
	read->is_reserve = false;
}

void usw_diskfault_collect(UNUSED struct usw_disk_faults *faults)
{
}

int usw_diskfault_open(UNUSED struct usw_disk_faults *faults, UNUSED struct usw_session *s,
		       struct usw_disk_read *read, UNUSED const char **ret_why)
{
	read->stage = USW_READ_READY;
	return 0;
}

void usw_diskfault_done(struct usw_disk_faults *faults, struct usw_disk_read *read)
{
	uint32_t i = (uint32_t)(read - faults->at);

	read->stage = USW_READ_IDLE;
	faults->busy--;
	faults->busy_bits[i / 64] &= ~((uint64_t)1 << i % 64);
	settled++;
}

void usw_session_report(UNUSED struct usw_session *s, UNUSED enum usw_event_kind kind,
			UNUSED uint32_t target_id, UNUSED int pid, UNUSED const char *format, ...)
{
	abort();
}

usw_page_word *usw_answer_find_evicted(UNUSED const struct usw_target *t, uint64_t page,
				       uint64_t *ret_now)
{
	uint32_t i = (uint32_t)(page / USW_PAGE_BYTES / 2);

	*ret_now = usw_page_make(USW_PAGE_EVICTED, 0, i + 1, 0);
	return &words[i];
}

bool usw_content_is_on_disk(UNUSED const struct usw_session *s, UNUSED uint32_t id,
			    UNUSED struct usw_disk_place *place)
{
	return true;
}

void usw_content_touch(UNUSED const struct usw_session *s, UNUSED uint32_t segment)
{
}

void usw_answer_count_touch(UNUSED struct usw_fault_thread *t, UNUSED struct usw_target *u,
			    UNUSED uint64_t now, UNUSED bool on_disk)
{
}

void usw_fault_finish(UNUSED struct usw_fault_thread *t, UNUSED const struct usw_fault *fault,
		      UNUSED enum usw_verdict verdict)
{
}

enum usw_verdict usw_fault_answer(UNUSED struct usw_fault_thread *t, UNUSED struct usw_target *u,
				  UNUSED const struct usw_fault *fault)
{
	return USW_DROPPED;
}

enum usw_verdict usw_answer_poison(UNUSED struct usw_fault_thread *t, UNUSED struct usw_target *u,
				   UNUSED uint64_t page, UNUSED usw_page_word *word,
				   UNUSED uint64_t now, UNUSED const char *where,
				   UNUSED const char *why)
{
	abort();
}

bool usw_answer_is_hands(UNUSED const struct usw_target *t, UNUSED const struct usw_fault *fault)
{
	return false;
}

bool usw_answer_has_room(UNUSED struct usw_fault_thread *t, UNUSED struct usw_target *u,
			 UNUSED const struct usw_fault *fault)
{
	return has_room;
}

int usw_answer_hand_in(UNUSED struct usw_fault_thread *t, UNUSED struct usw_target *u,
		       uint64_t page, UNUSED usw_page_word *word, UNUSED uint64_t now,
		       UNUSED const void *bytes, UNUSED enum usw_backend backend,
		       UNUSED bool on_disk, struct usw_access access)
{
	last_page = page;
	handed_in++;
	unasked += !access.touches;
	return 0;
}

enum usw_verdict usw_answer_failed(UNUSED struct usw_fault_thread *f, UNUSED struct usw_target *t,
				   uint64_t page, int error)
{
	CHECK_EQ(page, guard);
	CHECK_EQ(error, -ENOENT);
	return USW_DROPPED;
}

bool usw_guards_meet(UNUSED struct usw_target *t, uint64_t page)
{
	return guard && guard == page;
}

void usw_answer_settle(UNUSED struct usw_fault_thread *t, UNUSED usw_page_word *word,
		       UNUSED uint64_t now, UNUSED enum usw_backend backend, UNUSED bool on_disk,
		       UNUSED struct usw_access access)
{
}

struct usw_access usw_answer_access(UNUSED const struct usw_fault *fault)
{
	return (struct usw_access){.touches = true};
}

uint32_t usw_guards_clip(UNUSED struct usw_target *t, uint64_t page, uint32_t count)
{
	bool is_in = guard >= page && guard < page + count * USW_PAGE_BYTES;

	return guard && is_in ? (uint32_t)((guard - page) / USW_PAGE_BYTES) : count;
}

void usw_reclaim_kick(UNUSED struct usw_session *s)
{
}

void usw_fault_pump(UNUSED struct usw_fault_thread *t, UNUSED struct usw_target *u)
{
	if (called < 0)
		return;
	usw_diskfault_call(&disk, &disk.at[called]);
	disk.at[called].is_ahead = false;
	called = -1;
}

// --- Tests --------------------------------------------------------------------------------------

static void begin(void)
{
	memset(&disk, 0, sizeof(disk));
	memset(&session, 0, sizeof(session));
	session.vswap.space.base = (char *)descriptors;
	session.vswap.capacity = USW_DISK_READS_MAX + 1;
	session.segments.headers.base = (char *)headers;
	session.segments.capacity = 2;
	thread.session = &session;
	thread.disk = &disk;
	has_room = true;
	settled = unasked = handed_in = 0;
	guard = 0;
	asked_count = 0;
}

/** A read of a page with no neighbour, so that each is settled alone. */
static void put(uint32_t i, enum usw_disk_read_stage stage, bool is_reserve)
{
	disk.at[i] = (struct usw_disk_read){
		.stage = stage,
		.target = &target,
		.fault.page = (uint64_t)i * 2 * USW_PAGE_BYTES,
		.is_ahead = is_reserve,
		.is_reserve = is_reserve,
		.id = i + 1,
		.place.segment = 1,
	};
	disk.busy++;
	disk.busy_bits[i / 64] |= (uint64_t)1 << i % 64;
}

/** Go on as a fault thread does, until it would sleep. Returns after how many looks. */
static uint32_t look_until_sleep(void)
{
	for (uint32_t looks = 1; looks < 1000; looks++) {
		usw_diskanswer_settle(&thread);
		if (!disk.is_ripe)
			return looks;
	}
	CHECK(!"it never sleeps");
	return 0;
}

static void test_all_are_settled_and_then_it_sleeps(void)
{
	for (uint32_t count = 0; count <= USW_DISK_READS_MAX; count++) {
		for (uint32_t from = 0; from < USW_DISK_READS_MAX; from += 37) {
			begin();
			disk.looked = from;
			for (uint32_t i = 0; i < count; i++)
				put((from / 2 + i) % USW_DISK_READS_MAX, USW_READ_DONE, false);
			CHECK_THAT(look_until_sleep(), <=, count + 2);
			CHECK_EQ(settled, count);
			CHECK_EQ(disk.busy, 0);
		}
	}
}

/** Every read is looked at in its turn, wherever those before it were. */
static void test_none_is_passed_over_for_long(void)
{
	begin();
	put(100, USW_READ_DONE, false);
	for (uint32_t i = 0; i < 20; i++)
		put(i, USW_READ_DONE, false);
	for (uint32_t looks = 0; disk.at[100].stage != USW_READ_IDLE; looks++) {
		CHECK_THAT(looks, <, USW_DISK_READS_MAX);
		usw_diskanswer_settle(&thread);
		for (uint32_t i = 0; i < 20; i++)
			if (disk.at[i].stage == USW_READ_IDLE)
				put(i, USW_READ_DONE, false); // the disk is fast
	}
}

static void test_a_page_called_while_others_are_settled_is_not_forgotten(void)
{
	for (uint32_t others = 1; others < 10; others++) {
		begin();
		put(3, USW_READ_DONE, true);
		for (uint32_t i = 0; i < others; i++)
			put(10 + i, USW_READ_READY, false);
		called = 3;
		look_until_sleep();
		CHECK_EQ(settled, others + 1);
	}
}

/** What came ahead of a fault has not been touched, as far as anybody knows. */
static void test_what_is_read_ahead_is_not_touched(void)
{
	begin();
	for (uint32_t i = 0; i < 10; i++) {
		put(i, USW_READ_DONE, false);
		disk.at[i].is_ahead = i % 2;
	}
	look_until_sleep();
	CHECK_EQ(settled, 10);
	CHECK_EQ(unasked, 5);
}

/** Nor has a guard, whether somebody has touched its page when that was none or not. */
static void test_what_is_read_takes_no_guard_away(void)
{
	for (uint32_t waits = 0; waits < 2; waits++) {
		begin();
		for (uint32_t i = 0; i < 10; i++) {
			put(i, USW_READ_DONE, false);
			disk.at[i].is_ahead = i != 5 || !waits;
		}
		guard = disk.at[5].fault.page;
		look_until_sleep();
		CHECK_EQ(settled, 10);
		CHECK_EQ(handed_in, 9);
	}
}

/** Who waits is woken when all that came ahead of him is there: he sleeps once for a walk. */
static void test_who_walks_is_woken_last(void)
{
	for (uint32_t waits = 0; waits < 10; waits++) {
		begin();
		atomic_store(&session.limit_pages, 4 * USW_STREAM_WINDOW_MAX);
		for (uint32_t i = 0; i < 10; i++) {
			put(i, USW_READ_DONE, false);
			disk.at[i].is_ahead = i != waits;
		}
		put(10, USW_READ_DONE, true); // not called
		for (disk.looked = waits; disk.at[waits].stage != USW_READ_IDLE;)
			usw_diskanswer_settle(&thread);
		CHECK_EQ(settled, 10);
		CHECK_EQ(last_page, (uint64_t)waits * 2 * USW_PAGE_BYTES);
	}
}

/** Where there is little room, it is left to who waits. */
static void test_what_is_ahead_takes_no_room_from_who_waits(void)
{
	begin();
	atomic_store(&session.limit_pages, 3);
	put(0, USW_READ_DONE, false);
	put(1, USW_READ_DONE, false);
	disk.at[1].is_ahead = true;
	usw_diskanswer_settle(&thread);
	CHECK_EQ(disk.at[0].stage, USW_READ_IDLE);
	CHECK_EQ(last_page, 0);
	look_until_sleep();
	CHECK_EQ(settled, 2);
}

/** What waits for room is asked about again by the clock, and no spinning helps. */
static void test_no_room_is_no_reason_to_spin(void)
{
	begin();
	has_room = false;
	for (uint32_t i = 0; i < 10; i++)
		put(i, USW_READ_DONE, false);
	CHECK(usw_diskanswer_settle(&thread));
	CHECK(!disk.is_ripe);
	CHECK_EQ(settled, 0);
	has_room = true;
	look_until_sleep();
	CHECK_EQ(settled, 10);
}

/** The `count` pages asked for last are in a row, from `lowest` on. */
static void check_asked(uint32_t count, uint64_t lowest, uint64_t step)
{
	CHECK_THAT(count, <=, asked_count);
	for (uint32_t i = 0; i < count; i++)
		CHECK_EQ(asked[asked_count - count + i], lowest + i * step);
}

static void test_a_walk_is_read_ahead_once_and_upwards(void)
{
	const uint64_t step = 2 * USW_PAGE_BYTES, start = 200 * USW_PAGE_BYTES;

	begin();
	usw_diskanswer_read_reserve(&thread, &target, start, step, 8);
	check_asked(8, start, step);
	usw_diskanswer_read_reserve(&thread, &target, start + 4 * step, step, 8);
	CHECK_EQ(asked_count, 12);
	check_asked(4, start + 8 * step, step);

	begin();
	usw_diskanswer_read_reserve(&thread, &target, start, -step, 8);
	check_asked(8, start - 7 * step, step);
	usw_diskanswer_read_reserve(&thread, &target, start - 4 * step, -step, 8);
	CHECK_EQ(asked_count, 12);
	check_asked(4, start - 11 * step, step);
	usw_diskanswer_read_reserve(&thread, &target, start - 4 * step, -step, 8);
	CHECK_EQ(asked_count, 12);

	begin();
	disk.busy = USW_DISK_READS_MAX - 32; // what is left is for those that wait
	usw_diskanswer_read_reserve(&thread, &target, start, step, 8);
	CHECK_EQ(asked_count, 0);
}

int main(void)
{
	check_start(60);
	test_all_are_settled_and_then_it_sleeps();
	test_none_is_passed_over_for_long();
	test_a_page_called_while_others_are_settled_is_not_forgotten();
	test_what_is_read_ahead_is_not_touched();
	test_what_is_read_takes_no_guard_away();
	test_who_walks_is_woken_last();
	test_what_is_ahead_takes_no_room_from_who_waits();
	test_no_room_is_no_reason_to_spin();
	test_a_walk_is_read_ahead_once_and_upwards();
	return 0;
}
