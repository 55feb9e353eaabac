// Attention over pages of 16 positions (ARITHMETIC.md, 3).
#include "common.cuh"

enum { PAGE = 16, SEGMENT = 256, SEGMENT_PAGES = SEGMENT / PAGE, HEAD_MAX = 256 };

// What one head of one row sees.
struct Seen {
    // The first position, and the one behind the last.
    int from, end;
    // Addresses of the pages, by number.
    const float* const* pages;
};

// Segments that are seen: the first one, and how many.
__device__ __forceinline__ int first_segment(int from) { return from / SEGMENT; }
__device__ __forceinline__ int segment_count(int from, int end) { return divided_up(end, SEGMENT) - from / SEGMENT; }

// Where the keys and values of a KV head lie in a page.
struct Places {
    size_t keys, values;
    int hd;
};
__device__ __forceinline__ Places places_of(int kv_heads, int kv_head, int hd) {
    return {(size_t)kv_head * hd * PAGE, (size_t)(kv_heads + kv_head) * hd * PAGE, hd};
}

// What the threads of a block share of a segment.
struct SegmentShared {
    float query[HEAD_MAX];
    float weight[SEGMENT];
    // Of each page: its largest score, the largest until then, the sum of its weights, and what sums over the pages before are multiplied by.
    float page_max[SEGMENT_PAGES], running_max[SEGMENT_PAGES], page_sum[SEGMENT_PAGES], keep[SEGMENT_PAGES];
};

// The softmax of some positions: largest score, sum of weights, and one value of the weighted sum, not yet divided.
struct Attended {
    float max, sum, out;
};

// Score of a position: a sequence of multiply-adds over the head, then the scale.
__device__ __forceinline__ float score_of(const float* query, const Places& places, const Seen& seen, int position, float scale) {
    const float* key = seen.pages[position / PAGE] + places.keys + position % PAGE;
    float score = 0.0f;
#pragma unroll 8
    for (int d = 0; d < places.hd; d++) score = fmaf(query[d], key[d * PAGE], score);
    return __fmul_rn(score, scale);
}

// Weights of all positions of segment `segment`, and what the pages need, into `shared`. Thread t has position t of the segment.
// What others still read of the segment before is written behind the first barrier, which they reach when they are done with it.
__device__ __forceinline__ void weigh_segment(SegmentShared& shared, const Places& places, const Seen& seen, int segment, float scale) {
    const int t = threadIdx.x, page = t / PAGE, position = segment * SEGMENT + t;
    const bool is_seen = position >= seen.from && position < seen.end;
    const float score = is_seen ? score_of(shared.query, places, seen, position, scale) : MINUS_INFINITE;
    const float page_max = tree_max<PAGE>(score);
    if (t % PAGE == 0) shared.page_max[page] = page_max;
    __syncthreads();
    float before = MINUS_INFINITE;
    for (int p = 0; p < page; p++) before = larger(before, shared.page_max[p]);
    const float max = larger(before, page_max);
    const float weight = is_seen ? exp_of(__fsub_rn(score, max)) : 0.0f;
    shared.weight[t] = weight;
    const float page_sum = tree_sum<PAGE>(weight);
    if (t % PAGE == 0) {
        shared.running_max[page] = max;
        shared.page_sum[page] = page_sum;
        shared.keep[page] = max == before ? 1.0f : exp_of(__fsub_rn(before, max));
    }
    __syncthreads();
}

// Sum of weights, and value d of the weighted sum, page by page in the order of positions.
__device__ __forceinline__ Attended add_segment(const SegmentShared& shared, const Places& places, const Seen& seen, int segment, int d) {
    const int start = segment * SEGMENT;
    const int first = seen.from > start ? (seen.from - start) / PAGE : 0, last = smaller(divided_up(seen.end - start, PAGE), SEGMENT_PAGES);
    Attended all = {MINUS_INFINITE, 0.0f, 0.0f};
    for (int p = first; p < last; p++) {
        all.sum = fmaf(all.sum, shared.keep[p], shared.page_sum[p]);
        all.out = __fmul_rn(all.out, shared.keep[p]);
        const int page_start = start + p * PAGE;
        const int begin = seen.from > page_start ? seen.from - page_start : 0, end = smaller(seen.end - page_start, PAGE);
        const float* value = seen.pages[page_start / PAGE] + places.values + d;
        for (int t = begin; t < end; t++) all.out = fmaf(shared.weight[p * PAGE + t], value[(size_t)t * places.hd], all.out);
    }
    all.max = shared.running_max[last - 1];
    return all;
}

// Goes on with what was attended to before by a segment behind it.
__device__ __forceinline__ void merge(Attended& all, const Attended& segment) {
    const float max = larger(all.max, segment.max);
    const float a = max == all.max ? 1.0f : exp_of(__fsub_rn(all.max, max));
    const float b = max == segment.max ? 1.0f : exp_of(__fsub_rn(segment.max, max));
    all.sum = fmaf(all.sum, a, __fmul_rn(segment.sum, b));
    all.out = fmaf(all.out, a, __fmul_rn(segment.out, b));
    all.max = max;
}

__device__ __forceinline__ float divided(const Attended& all) { return __fmul_rn(all.out, __fdiv_rn(1.0f, all.sum)); }

// A segment of `part`: its maximum, its sum, and hd values.
__device__ __forceinline__ size_t part_at(int row, int heads, int head, int splits, int z, int hd) {
    return (((size_t)row * heads + head) * splits + z) * (hd + 2);
}

// out[row][head] = softmax(q K^T * scale) V of what each row sees, from[row] to positions[row]. `tables` is [sequence][pages_max], the
// addresses of the pages of a sequence, and sequences[row] the sequence of a row. hd is at most 256.
//
// With one split, a block of threads goes through all segments of its row. With more, block z computes segment z of those that the row sees, into
// `part`, and attention_merge follows. The bits are the same. grid (heads, rows, splits), 256 threads.
KERNEL __launch_bounds__(256, 4)
attention(const float* __restrict__ q, const float* const* __restrict__ tables, int pages_max, const int* __restrict__ sequences,
          const int* __restrict__ positions, const int* __restrict__ from, int heads, int kv_heads, int hd, float scale, int splits,
          float* __restrict__ part, float* __restrict__ out) {
    SHARED(SegmentShared, shared);
    const int d = threadIdx.x, head = blockIdx.x, row = blockIdx.y, z = blockIdx.z;
    const Seen seen = {from[row], positions[row] + 1, tables + (size_t)sequences[row] * pages_max};
    const Places own = places_of(kv_heads, head / (heads / kv_heads), hd);
    const int first = first_segment(seen.from), count = segment_count(seen.from, seen.end);
    // The whole block. More segments than splits are seen by attention_merge.
    if (splits > 1 && z >= count) return;
    const size_t at = ((size_t)row * heads + head) * hd;
    if (d < hd) shared.query[d] = q[at + d];
    __syncthreads();
    const int begin = splits > 1 ? z : 0, end = splits > 1 ? z + 1 : count;
    Attended all = {MINUS_INFINITE, 0.0f, 0.0f};
    for (int s = begin; s < end; s++) {
        weigh_segment(shared, own, seen, first + s, scale);
        if (d < hd) {
            const Attended segment = add_segment(shared, own, seen, first + s, d);
            if (s == begin) all = segment;
            else merge(all, segment);
        }
    }
    if (d >= hd) return;
    if (splits == 1) {
        out[at + d] = divided(all);
        return;
    }
    float* to = part + part_at(row, heads, head, splits, z, hd);
    to[2 + d] = all.out;
    if (d > 0) return;
    to[0] = all.max;
    to[1] = all.sum;
}

// The segments of `part`, in order. A row that sees more of them than there are splits gets NaN, which fails its request.
// grid (heads, rows), hd threads.
KERNEL __launch_bounds__(256)
attention_merge(const float* __restrict__ part, const int* __restrict__ positions, const int* __restrict__ from, int heads, int hd, int splits,
                float* __restrict__ out) {
    const int d = threadIdx.x, head = blockIdx.x, row = blockIdx.y;
    const int count = segment_count(from[row], positions[row] + 1);
    const size_t at = ((size_t)row * heads + head) * hd + d;
    if (count > splits) {
        out[at] = __int_as_float(0x7fc00000);
        return;
    }
    Attended all = {MINUS_INFINITE, 0.0f, 0.0f};
    for (int s = 0; s < count; s++) {
        const float* segment = part + part_at(row, heads, head, splits, s, hd);
        const Attended next = {segment[0], segment[1], segment[2 + d]};
        if (s == 0) all = next;
        else merge(all, next);
    }
    out[at] = divided(all);
}
