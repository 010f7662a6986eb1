// SPDX-License-Identifier: MIT

/**
 * @file
 * The marginal gains of two uses of one memory. See balance.h.
 */

#include "balance.h"

#define USW_BALANCE_NS 200000000u
/* With fewer faults than this there is nothing to go by. */
#define USW_BALANCE_FAULTS 64u
#define USW_STORED_MIN (USW_BALANCE_PARTS / 8)
#define USW_STORED_MAX (USW_BALANCE_PARTS / 16 * 13)
/* In a small budget this much stays for what is resident, if that is not more than half. */
#define USW_RESIDENT_BYTES (16u << 20)
/* A fault on RAM, and its page's next way out. */
#define USW_NEAR_NS 10000u
/* To compress a page denser takes about 16 us. Waits that are longer, or shorter, say what pays. */
#define USW_PACK_LONG_NS 20000u
#define USW_PACK_SHORT_NS 12000u
/* One side has to weigh so much more, in quarters, before the share moves. */
#define USW_BALANCE_QUARTERS 6u
/* In such a time two thirds of what was seen of the disk's side are forgotten. */
#define USW_BALANCE_FORGET_NS 13000000000u

void usw_balance_init(struct usw_balance *balance, uint64_t now_ns)
{
	*balance = (struct usw_balance){
		.stored_parts = USW_BALANCE_PARTS / 2,
		.packing_pays = true,
		.looked_ns = now_ns,
	};
}

/** What has happened since the last look. */
struct news {
	uint64_t near_faults, disk_faults, disk_ns, ns;
};

static struct news look(const struct usw_balance *balance, const struct usw_balance_seen *seen,
			uint64_t now_ns)
{
	return (struct news){
		.near_faults = seen->near_faults - balance->near_faults,
		.disk_faults = seen->disk_faults - balance->disk_faults,
		.disk_ns = seen->disk_ns - balance->disk_ns,
		.ns = now_ns - balance->looked_ns,
	};
}

/**
 * What the disk's faults cost beyond what they would in RAM, of those that a step of RAM saves. The
 * pages that leave for it have to be stored, too: of pages that do not compress no more are in RAM
 * after the step than before.
 */
static double stored_gain(const struct news *news, const struct usw_balance_seen *seen,
			  uint64_t step_bytes)
{
	double pages_bytes = (double)seen->live_objects * USW_PAGE_BYTES;
	double taken = pages_bytes > 0 ? (double)seen->live_bytes / pages_bytes : 0; // of each page
	double gained_bytes = taken < 1 ? (1 - taken) * (double)step_bytes : 0;
	double disk_bytes = (double)seen->disk_bytes;
	double saved = gained_bytes < disk_bytes ? gained_bytes / disk_bytes : gained_bytes > 0;
	double extra_ns = (double)news->disk_ns - (double)news->disk_faults * USW_NEAR_NS;

	return extra_ns > 0 ? saved * extra_ns / (double)news->ns : 0;
}

static double resident_gain(const struct news *news)
{
	return (double)news->near_faults * USW_NEAR_NS * USW_NEAR_SHARE / USW_BALANCE_PARTS /
	       (double)news->ns;
}

static void judge_packing(struct usw_balance *balance, const struct usw_balance_seen *seen)
{
	uint64_t pages = seen->disk_pages - balance->judged_pages;
	uint64_t ns = seen->disk_ns - balance->judged_ns;

	if (pages < USW_BALANCE_FAULTS)
		return;
	if (ns > pages * USW_PACK_LONG_NS)
		balance->packing_pays = true;
	else if (ns < pages * USW_PACK_SHORT_NS)
		balance->packing_pays = false;
	balance->judged_pages = seen->disk_pages;
	balance->judged_ns = seen->disk_ns;
}

/** Note what a step is worth to what is stored. What was seen of it holds while there is too little. */
static void note_gain(struct usw_balance *balance, double gain, bool is_telling, uint64_t ns)
{
	double forgotten = ns < USW_BALANCE_FORGET_NS ? (double)ns / USW_BALANCE_FORGET_NS : 1;

	balance->disk_gain -= balance->disk_gain * forgotten;
	if (is_telling || gain > balance->disk_gain)
		balance->disk_gain = gain;
}

void usw_balance_look(struct usw_balance *balance, const struct usw_balance_seen *seen,
		      uint64_t now_ns)
{
	struct news news = look(balance, seen, now_ns);
	uint64_t step_bytes = seen->memory_bytes / USW_BALANCE_PARTS;

	if (news.ns < USW_BALANCE_NS)
		return;
	judge_packing(balance, seen);
	if (news.near_faults + news.disk_faults < USW_BALANCE_FAULTS)
		return;
	double stored = stored_gain(&news, seen, step_bytes);
	double resident = resident_gain(&news);

	note_gain(balance, stored / (double)step_bytes, seen->disk_bytes >= step_bytes, news.ns);
	if (stored * 4 > resident * USW_BALANCE_QUARTERS && balance->stored_parts < USW_STORED_MAX)
		balance->stored_parts++;
	else if (resident * 4 > balance->disk_gain * (double)step_bytes * USW_BALANCE_QUARTERS &&
		 balance->stored_parts > USW_STORED_MIN)
		balance->stored_parts--;
	balance->looked_ns = now_ns;
	balance->near_faults = seen->near_faults;
	balance->disk_faults = seen->disk_faults;
	balance->disk_ns = seen->disk_ns;
}

uint64_t usw_balance_stored_bytes(const struct usw_balance *balance, uint64_t memory_bytes)
{
	uint64_t bytes = memory_bytes / USW_BALANCE_PARTS * balance->stored_parts;
	uint64_t resident = usw_min(memory_bytes / 2, (uint64_t)USW_RESIDENT_BYTES);

	return usw_min(bytes, memory_bytes - resident);
}
