// SPDX-License-Identifier: MIT

/**
 * @file
 * The workload of `uffdswap bench`: touches pages in a pattern, times each access, checks each one.
 *
 * It knows nothing of swap, so whatever limits its memory can be compared: a cgroup with a kernel's
 * swap device, `uffdswap run`, or nothing. Phases: every thread fills its slice of the pages, waits
 * for what the filling set going, warms up with the pattern itself, and only then measures. At the
 * end every page is compared as a whole. Wrong content is reported and makes the exit status 1.
 *
 * An access is timed from before its first touch to after its check; choosing the page and looking
 * up its version are outside. A write is an exchange, so it faults as a write and still returns
 * what was there. The time that an access takes with nothing to wait for is reported as overhead.
 *
 * With --gate, the program says on stdout which phase has ended and waits for a line on stdin, so
 * that whoever measures can read the counters of the machine at exactly these moments.
 */

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "content.h"
#include "histogram.h"
#include "pattern.h"
#include "random.h"
#include "wrong.h"

#define THREADS_MAX 256
#define OVERHEAD_ACCESSES 100000
#define NONE UINT64_MAX

enum { EXIT_OK, EXIT_WRONG_CONTENT, EXIT_USAGE, EXIT_CANNOT };

struct options {
	const struct usw_pattern_name *pattern;
	const char *content, *pages_path;
	uint64_t size_bytes, accesses, seed, corrupt_page;
	double seconds, warmup_seconds, settle_seconds;
	unsigned int threads, write_percent;
	bool audit, gate;
};

struct worker {
	pthread_t thread;
	uint64_t first_page, pages;
	struct usw_pattern pattern;
	struct usw_histogram histogram;
	struct usw_wrong wrong;
	uint64_t audited_pages;
};

static struct options options;
static struct usw_content content;
static uint64_t *area;     /* the pages */
static uint32_t *versions; /* of each page; a thread touches those of its slice only */
static struct worker *workers;
static pthread_barrier_t barrier;
static double ticks_per_second;

/* --- Time ------------------------------------------------------------------------------------- */

static double now_seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/** A clock that costs a few nanoseconds: the processor's own where it has one. */
static inline uint64_t now_ticks(void)
{
#if defined(__x86_64__)
	return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
	uint64_t ticks;

	__asm__ volatile("isb; mrs %0, cntvct_el0" : "=r"(ticks));
	return ticks;
#else
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
#endif
}

static void calibrate(void)
{
	uint64_t ticks = now_ticks();
	double start = now_seconds(), end;

	do
		end = now_seconds();
	while (end - start < 0.05);
	ticks_per_second = (double)(now_ticks() - ticks) / (end - start);
}

static double ns_of(double ticks)
{
	return ticks * 1e9 / ticks_per_second;
}

/* --- One access ------------------------------------------------------------------------------- */

static uint64_t *page_at(uint64_t number)
{
	return area + number * USW_PAGE_WORDS;
}

/** Look at a page whose tags are not those of a version; they may have been replaced since. */
static __attribute__((cold, noinline)) void note_wrong(struct worker *worker, uint64_t number,
						       uint32_t version, uint64_t tag,
						       uint64_t other_tag)
{
	uint64_t found[USW_PAGE_WORDS];

	memcpy(found, page_at(number), sizeof(found));
	found[usw_content_first_tag(number)] = tag;
	found[usw_content_second_tag(number)] = other_tag;
	usw_wrong_compare(&worker->wrong, &content, number, version, found, false);
}

/** Read both tags of a page or, for a write, replace them; returns how long that took. */
static uint64_t touch(struct worker *worker, uint64_t number, bool write)
{
	uint64_t old_tag = usw_content_tag(&content, number, versions[number]);
	uint64_t new_tag = write ? usw_content_tag(&content, number, ++versions[number]) : 0;
	uint64_t *first = page_at(number) + usw_content_first_tag(number);
	uint64_t *second = page_at(number) + usw_content_second_tag(number);
	uint64_t start, found, found_other;

	start = now_ticks();
	if (write) {
		found = __atomic_exchange_n(first, new_tag, __ATOMIC_RELAXED);
		found_other = __atomic_exchange_n(second, usw_content_other_tag(new_tag),
						  __ATOMIC_RELAXED);
	} else {
		found = __atomic_load_n(first, __ATOMIC_RELAXED);
		found_other = __atomic_load_n(second, __ATOMIC_RELAXED);
	}
	if (__builtin_expect(found != old_tag || found_other != usw_content_other_tag(old_tag), 0))
		note_wrong(worker, number, versions[number] - write, found, found_other);
	return now_ticks() - start;
}

/** Follow the pattern for a number of accesses or, if that is 0, for some seconds. */
static void follow(struct worker *worker, double seconds, uint64_t accesses,
		   struct usw_histogram *histogram)
{
	uint64_t deadline = now_ticks() + (uint64_t)(seconds * ticks_per_second);
	bool write;

	for (uint64_t done = 0; accesses ? done < accesses : now_ticks() < deadline; done++) {
		uint64_t page = worker->first_page + usw_pattern_next(&worker->pattern, &write);
		uint64_t ticks = touch(worker, page, write);

		if (histogram)
			usw_histogram_add(histogram, ticks);
	}
}

/** What an access takes by itself, choice of the page included: the same page over and over. */
static double overhead_ns(struct worker *worker)
{
	struct usw_pattern pattern = worker->pattern;
	uint64_t start = now_ticks(), ticks = 0;
	bool write;

	for (unsigned int i = 0; i < OVERHEAD_ACCESSES; i++) {
		/* The page is chosen, but for its cost alone. */
		uint64_t page = usw_pattern_next(&pattern, &write);

		__asm__ volatile("" : : "r"(page));
		ticks += touch(worker, worker->first_page, false);
	}
	__asm__ volatile("" : : "r"(ticks));
	return ns_of((double)(now_ticks() - start)) / OVERHEAD_ACCESSES;
}

/* --- A thread's phases ------------------------------------------------------------------------ */

static void fill(const struct worker *worker)
{
	for (uint64_t i = 0; i < worker->pages; i++)
		usw_content_fill(&content, worker->first_page + i, 0,
				 page_at(worker->first_page + i));
}

/** Compare every page of the slice, whole, with what it must be. */
static void audit(struct worker *worker)
{
	for (uint64_t i = 0; i < worker->pages; i++) {
		uint64_t number = worker->first_page + i;

		usw_wrong_compare(&worker->wrong, &content, number, versions[number],
				  page_at(number), true);
		worker->audited_pages++;
	}
}

/** One worker; between phases all of them wait for the main thread, twice. */
static void *work(void *argument)
{
	struct worker *worker = argument;
	uint64_t accesses = options.accesses / options.threads;

	fill(worker);
	pthread_barrier_wait(&barrier); /* filled */
	pthread_barrier_wait(&barrier);
	if (options.warmup_seconds > 0)
		follow(worker, options.warmup_seconds, 0, NULL);
	pthread_barrier_wait(&barrier); /* ready */
	pthread_barrier_wait(&barrier);
	follow(worker, options.seconds, accesses, &worker->histogram);
	pthread_barrier_wait(&barrier); /* measured */
	pthread_barrier_wait(&barrier);
	if (options.audit)
		audit(worker);
	return NULL;
}

/* --- The main thread -------------------------------------------------------------------------- */

struct measurement {
	double wall_seconds, user_seconds, system_seconds;
	long minor_faults, major_faults;
};

static double seconds_of(struct timeval time)
{
	return (double)time.tv_sec + 1e-6 * (double)time.tv_usec;
}

static struct measurement read_counters(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return (struct measurement){
		.wall_seconds = now_seconds(),
		.user_seconds = seconds_of(usage.ru_utime),
		.system_seconds = seconds_of(usage.ru_stime),
		.minor_faults = usage.ru_minflt,
		.major_faults = usage.ru_majflt,
	};
}

static struct measurement difference(struct measurement end, struct measurement start)
{
	return (struct measurement){
		.wall_seconds = end.wall_seconds - start.wall_seconds,
		.user_seconds = end.user_seconds - start.user_seconds,
		.system_seconds = end.system_seconds - start.system_seconds,
		.minor_faults = end.minor_faults - start.minor_faults,
		.major_faults = end.major_faults - start.major_faults,
	};
}

/** Say that a phase has ended and wait for leave to go on; a closed stdin is leave, too. */
static void gate(const char *phase)
{
	char line[16];

	if (!options.gate)
		return;
	printf("{\"phase\": \"%s\"}\n", phase);
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		clearerr(stdin);
}

static void settle(void)
{
	double left = options.settle_seconds;
	struct timespec pause = {(time_t)left, (long)((left - (double)(time_t)left) * 1e9)};

	while (nanosleep(&pause, &pause) < 0 && errno == EINTR)
		;
}

static void corrupt_if_asked(void)
{
	if (options.corrupt_page != NONE)
		page_at(options.corrupt_page)[USW_PAGE_WORDS / 2] ^= 1;
}

static struct measurement run_phases(double *ret_overhead_ns)
{
	struct measurement start, result;

	pthread_barrier_wait(&barrier);
	*ret_overhead_ns = overhead_ns(&workers[0]);
	corrupt_if_asked();
	gate("filled");
	settle();
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	gate("ready");
	start = read_counters();
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	result = difference(read_counters(), start);
	gate("measured");
	pthread_barrier_wait(&barrier);
	for (unsigned int i = 0; i < options.threads; i++)
		pthread_join(workers[i].thread, NULL);
	return result;
}

static void print_latency(const char *name, const struct usw_histogram *histogram, double share)
{
	printf("\"%s\": %.0f, ", name, ns_of((double)usw_histogram_quantile(histogram, share)));
}

static void print_result(const struct measurement *m, const struct usw_histogram *histogram,
			 const struct usw_wrong *wrong, double overhead, uint64_t audited_pages)
{
	printf("{\"schema\": \"uffdswap.workload/1\", \"pattern\": \"%s\", \"content\": \"%s\", "
	       "\"write_percent\": %u, \"threads\": %u, \"seed\": %" PRIu64 ", \"pages\": %" PRIu64
	       ", ",
	       options.pattern->name, options.pages_path ? "file" : options.content,
	       options.write_percent, options.threads, options.seed,
	       options.size_bytes / USW_PAGE_BYTES);
	printf("\"accesses\": %" PRIu64 ", \"wall_seconds\": %.6f, \"pages_per_second\": %.0f, ",
	       histogram->count, m->wall_seconds, (double)histogram->count / m->wall_seconds);
	printf("\"latency_ns\": {");
	print_latency("p50", histogram, 0.5);
	print_latency("p99", histogram, 0.99);
	print_latency("p999", histogram, 0.999);
	printf("\"max\": %.0f}, \"overhead_ns\": %.1f, ", ns_of((double)histogram->max), overhead);
	printf("\"cpu_seconds\": {\"user\": %.6f, \"system\": %.6f}, ", m->user_seconds,
	       m->system_seconds);
	printf("\"faults\": {\"minor\": %ld, \"major\": %ld}, ", m->minor_faults, m->major_faults);
	printf("\"audited_pages\": %" PRIu64 ", \"wrong_pages\": %" PRIu64, audited_pages,
	       wrong->count);
	if (wrong->count) {
		printf(", \"wrong\": ");
		usw_wrong_print_json(wrong, stdout);
	}
	printf("}\n");
}

static int report(const struct measurement *measurement, double overhead)
{
	struct usw_histogram *histogram = calloc(1, sizeof(*histogram));
	struct usw_wrong wrong = {0};
	uint64_t audited_pages = 0;

	if (!histogram)
		return EXIT_CANNOT;
	for (unsigned int i = 0; i < options.threads; i++) {
		usw_histogram_merge(histogram, &workers[i].histogram);
		audited_pages += workers[i].audited_pages;
		usw_wrong_add(&wrong, &workers[i].wrong);
	}
	print_result(measurement, histogram, &wrong, overhead, audited_pages);
	free(histogram);
	if (fflush(stdout) != 0)
		return EXIT_CANNOT;
	if (!wrong.count)
		return EXIT_OK;
	usw_wrong_print_line(&wrong, stderr);
	return EXIT_WRONG_CONTENT;
}

static bool prepare(void)
{
	uint64_t pages = options.size_bytes / USW_PAGE_BYTES;

	area = mmap(NULL, pages * USW_PAGE_BYTES, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	versions = calloc(pages, sizeof(*versions));
	workers = calloc(options.threads, sizeof(*workers));
	if (area == MAP_FAILED || !versions || !workers)
		return false;
	for (unsigned int i = 0; i < options.threads; i++) {
		struct worker *worker = &workers[i];

		worker->first_page = pages * i / options.threads;
		worker->pages = pages * (i + 1) / options.threads - worker->first_page;
		usw_pattern_init(&worker->pattern, options.pattern->kind, options.write_percent,
				 worker->pages, options.seed + i);
	}
	return pthread_barrier_init(&barrier, NULL, options.threads + 1) == 0;
}

static bool start_workers(void)
{
	for (unsigned int i = 0; i < options.threads; i++)
		if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0)
			return false;
	return true;
}

/* --- Command line ----------------------------------------------------------------------------- */

static void print_usage(FILE *file)
{
	fprintf(file,
		"usage: uffdswap_workload --pattern NAME [OPTIONS]\n"
		"  --pattern NAME      %s\n"
		"  --size SIZE         of all pages together, such as 512M (256M)\n"
		"  --content NAME      text, mixed or random (text)\n"
		"  --pages FILE        take contents from the pages of a file instead\n"
		"  --threads N         each with a slice of the pages of its own (1)\n"
		"  --seconds S         how long to measure (3), or\n"
		"  --accesses N        how many accesses to measure\n"
		"  --warmup S          follow the pattern this long first (1)\n"
		"  --settle S          pause between filling and that (0.2)\n"
		"  --write-percent P   instead of the pattern's own\n"
		"  --seed N            of contents and accesses (1)\n"
		"  --no-audit          do not compare all pages at the end\n"
		"  --corrupt PAGE      spoil one page, to see that it is found\n"
		"  --gate              name each phase on stdout, wait for a line on stdin\n"
		"Prints one JSON object. Exit status: 0, 1 for wrong content, 2 for wrong usage,\n"
		"3 if it cannot have what it needs.\n",
		usw_pattern_names());
}

static bool parse_size(const char *text, uint64_t *ret)
{
	char *end;
	unsigned int shift = 0;

	errno = 0;
	*ret = strtoull(text, &end, 10);
	if (end == text || errno || *text == '-')
		return false;
	if (*end == 'K' || *end == 'M' || *end == 'G')
		shift = *end == 'K' ? 10 : *end == 'M' ? 20 : 30;
	if (shift)
		end++;
	if (*end || *ret > UINT64_MAX >> shift)
		return false;
	*ret <<= shift;
	return true;
}

static bool parse_seconds(const char *text, double *ret)
{
	char *end;

	*ret = strtod(text, &end);
	return end != text && !*end && *ret >= 0 && *ret <= 1e6;
}

static bool parse_small(const char *text, unsigned int max, unsigned int *ret)
{
	uint64_t value;

	if (!parse_size(text, &value) || value > max)
		return false;
	*ret = (unsigned int)value;
	return true;
}

enum {
	OPT_PATTERN = 256,
	OPT_SIZE,
	OPT_CONTENT,
	OPT_PAGES,
	OPT_THREADS,
	OPT_SECONDS,
	OPT_ACCESSES,
	OPT_WARMUP,
	OPT_SETTLE,
	OPT_WRITE_PERCENT,
	OPT_SEED,
	OPT_NO_AUDIT,
	OPT_CORRUPT,
	OPT_GATE,
	OPT_HELP,
};

static const struct option long_options[] = {
	{"pattern", required_argument, NULL, OPT_PATTERN},
	{"size", required_argument, NULL, OPT_SIZE},
	{"content", required_argument, NULL, OPT_CONTENT},
	{"pages", required_argument, NULL, OPT_PAGES},
	{"threads", required_argument, NULL, OPT_THREADS},
	{"seconds", required_argument, NULL, OPT_SECONDS},
	{"accesses", required_argument, NULL, OPT_ACCESSES},
	{"warmup", required_argument, NULL, OPT_WARMUP},
	{"settle", required_argument, NULL, OPT_SETTLE},
	{"write-percent", required_argument, NULL, OPT_WRITE_PERCENT},
	{"seed", required_argument, NULL, OPT_SEED},
	{"no-audit", no_argument, NULL, OPT_NO_AUDIT},
	{"corrupt", required_argument, NULL, OPT_CORRUPT},
	{"gate", no_argument, NULL, OPT_GATE},
	{"help", no_argument, NULL, OPT_HELP},
	{NULL, 0, NULL, 0},
};

static bool parse_option(int option, const char *value)
{
	switch (option) {
	case OPT_PATTERN:
		options.pattern = usw_pattern_find(value);
		return options.pattern != NULL;
	case OPT_SIZE:
		return parse_size(value, &options.size_bytes);
	case OPT_CONTENT:
		options.content = value;
		return true;
	case OPT_PAGES:
		options.pages_path = value;
		return true;
	case OPT_THREADS:
		return parse_small(value, THREADS_MAX, &options.threads) && options.threads;
	case OPT_SECONDS:
		return parse_seconds(value, &options.seconds);
	case OPT_ACCESSES:
		return parse_size(value, &options.accesses) && options.accesses;
	case OPT_WARMUP:
		return parse_seconds(value, &options.warmup_seconds);
	case OPT_SETTLE:
		return parse_seconds(value, &options.settle_seconds);
	case OPT_WRITE_PERCENT:
		return parse_small(value, 100, &options.write_percent);
	case OPT_SEED:
		return parse_size(value, &options.seed);
	case OPT_NO_AUDIT:
		options.audit = false;
		return true;
	case OPT_CORRUPT:
		return parse_size(value, &options.corrupt_page);
	case OPT_GATE:
		options.gate = true;
		return true;
	case OPT_HELP:
		print_usage(stdout);
		exit(EXIT_OK);
	default:
		return false; /* getopt has said what it does not know */
	}
}

/** What the options say together. */
static bool are_consistent(void)
{
	uint64_t pages = options.size_bytes / USW_PAGE_BYTES;

	if (!options.pattern)
		fprintf(stderr, "workload: --pattern is needed: %s\n", usw_pattern_names());
	else if (pages < options.threads * 16ULL)
		fprintf(stderr, "workload: --size is too small: 16 pages a thread are needed\n");
	else if (options.accesses && options.accesses < options.threads)
		fprintf(stderr, "workload: --accesses is less than one for each thread\n");
	else if (options.corrupt_page != NONE && options.corrupt_page >= pages)
		fprintf(stderr, "workload: --corrupt: there are only %" PRIu64 " pages\n", pages);
	else
		return true;
	return false;
}

static bool parse(int argc, char **argv)
{
	int option;

	options = (struct options){
		.content = "text",
		.size_bytes = 256 << 20,
		.seed = 1,
		.corrupt_page = NONE,
		.seconds = 3,
		.warmup_seconds = 1,
		.settle_seconds = 0.2,
		.threads = 1,
		.write_percent = UINT32_MAX,
		.audit = true,
	};
	while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
		if (!parse_option(option, optarg)) {
			if (option >= OPT_PATTERN)
				fprintf(stderr, "workload: \"%s\" makes no sense for --%s\n",
					optarg, long_options[option - OPT_PATTERN].name);
			return false;
		}
	}
	if (optind < argc) {
		fprintf(stderr, "workload: \"%s\" is not an option\n", argv[optind]);
		return false;
	}
	if (options.pattern && options.write_percent == UINT32_MAX)
		options.write_percent = options.pattern->write_percent;
	return are_consistent();
}

static bool prepare_content(void)
{
	int error;

	if (!options.pages_path) {
		if (usw_content_init(&content, options.content, options.seed) == 0)
			return true;
		fprintf(stderr, "workload: there is no content named \"%s\"\n", options.content);
		return false;
	}
	error = usw_content_init_file(&content, options.pages_path, options.seed);
	if (error == 0)
		return true;
	fprintf(stderr, "workload: cannot take pages from %s: %s\n", options.pages_path,
		error == -ENODATA ? "it holds no page of 4096 bytes" : strerror(-error));
	return false;
}

int main(int argc, char **argv)
{
	struct measurement measurement;
	double overhead;

	if (!parse(argc, argv) || !prepare_content()) {
		fprintf(stderr, "workload: try --help\n");
		return EXIT_USAGE;
	}
	calibrate();
	if (!prepare() || !start_workers()) {
		fprintf(stderr, "workload: cannot have the memory or the threads: %s\n",
			strerror(errno));
		return EXIT_CANNOT;
	}
	measurement = run_phases(&overhead);
	usw_content_deinit(&content);
	return report(&measurement, overhead);
}
