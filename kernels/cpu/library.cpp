// The C interface. `dtype` is 0 for float and 1 for bfloat16 wherever it appears; functions that
// return int return 0, or 1 if memory ran out.
#include "decoder.h"
#include "experts.h"

using namespace tokenbus;

namespace {

template <class F>
auto with_kind(int dtype, F f) {
    return dtype == 0 ? f(Float{}) : f(Bfloat{});
}

// Rows that one call of `tokenbus_linear` normalises and multiplies at once.
constexpr int kLinearRows = 128;

template <class Kind>
int linear_rows(const Linear& linear, const float* norm, float eps, const float* x,
                int num_rows, int num_threads, Workspace& workspace, float* out) {
    using T = typename Kind::Value;
    const size_t size = linear.num_inputs;
    const size_t widened = linear.format == kPlain ? 0 : kPanel * padded<Kind>(linear.num_inputs);
    char* base = workspace.reserve((kLinearRows * size + num_threads * widened) * sizeof(T));
    if (base == nullptr) return 1;
    T* normed = reinterpret_cast<T*>(base);
    T* wide = normed + kLinearRows * size;
    for (int first = 0; first < num_rows; first += kLinearRows) {
        int count = std::min(kLinearRows, num_rows - first);
        run_team(num_threads, 2, [&](Member& member) {
            member.share(count, 1, [&](int row) {
                rms_norm(x + (first + row) * size, norm, int(size), eps, normed + row * size);
            });
            member.wait();
            member.share(num_panels(linear), 4, [&](int panel) {
                linear_panel<Kind>(linear, normed, size, count, panel,
                                   wide + member.rank() * widened,
                                   [&](int row, int column, int width, const float* sums) {
                    float* to = out + size_t(first + row) * linear.num_outputs + column;
                    std::memcpy(to, sums, width * sizeof(float));
                });
            });
        });
    }
    return 0;
}

template <class Kind>
int attend_pages(const Batch& batch, const AttentionShape& shape, const void* q, size_t q_stride,
                 void* k_pages, void* v_pages, Workspace& workspace, void* out) {
    using T = typename Kind::Value;
    AttentionPlan<Kind> plan(batch, shape);
    Cutter counter(nullptr);
    plan.cut(counter, batch.num_threads);
    char* base = workspace.reserve(counter.used());
    if (base == nullptr) return 1;
    Cutter cutter(base);
    plan.cut(cutter, batch.num_threads);
    AttentionTensors<T> tensors{{static_cast<T*>(k_pages), shape},
                                {static_cast<T*>(v_pages), shape},
                                static_cast<const T*>(q), q_stride, static_cast<T*>(out)};
    run_team(batch.num_threads, plan.num_phases(),
             [&](Member& member) { plan.run(member, tensors); });
    return 0;
}

}  // namespace

extern "C" {

int tokenbus_panel_width() { return kPanel; }

Workspace* tokenbus_workspace_new() { return new Workspace; }

void tokenbus_workspace_delete(Workspace* workspace) { delete workspace; }

// Ask for huge pages under [start, start + size): a pass reads all weights once, and with small
// pages a sixth of a single row's time went into translating addresses.
void tokenbus_use_huge_pages(void* start, size_t size) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    uintptr_t first = (uintptr_t(start) + kHugePage - 1) / kHugePage * kHugePage;
    uintptr_t last = (uintptr_t(start) + size) / kHugePage * kHugePage;
    if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    (void)start, (void)size;
#endif
}

// Bytes of a packed weight, its outputs filled up to whole panels.
size_t tokenbus_packed_bytes(int dtype, int format, int num_outputs, int num_inputs) {
    return with_kind(dtype, [&](auto kind) {
        size_t panels = (num_outputs + kPanel - 1) / kPanel;
        return panels * panel_bytes<decltype(kind)>(WeightFormat(format), num_inputs);
    });
}

// weight: [num_outputs, num_inputs], row-major, of int8 or dtype; for 4 bits the steps of a
// NibbleMatrix, whose scales and lows are null for others; to: panels as described in multiply.h and
// nibbles.h, for products in dtype.
void tokenbus_pack(int dtype, int format, const void* weight, int num_outputs, int num_inputs,
                   const void* scales, const void* lows, void* to, int num_threads) {
    with_kind(dtype, [&](auto kind) {
        using Kind = decltype(kind);
        using T = typename Kind::Value;
        auto panels = [&](auto f) {
            int count = (num_outputs + kPanel - 1) / kPanel;
            run_team(num_threads, 1, [&](Member& member) { member.share(count, 1, f); });
        };
        auto copy = [&](auto from, auto out) {
            panels([&](int panel) {
                pack_panels<Kind, kLinearVectors>(from, num_inputs, num_outputs, num_inputs, panel,
                                                  panel + 1, out);
            });
        };
        if (format == kInt8) {
            copy(static_cast<const int8_t*>(weight), static_cast<int8_t*>(to));
        } else if (format == kInt4) {
            const size_t size = panel_bytes<Kind>(kInt4, num_inputs);
            const NibbleMatrix from = {static_cast<const uint8_t*>(weight),
                                       static_cast<const bf16*>(scales),
                                       static_cast<const bf16*>(lows), num_outputs, num_inputs};
            panels([&](int panel) {
                pack_nibbles<Kind, kLinearVectors>(from, panel * kPanel,
                                                   static_cast<uint8_t*>(to) + panel * size);
            });
        } else {
            copy(static_cast<const T*>(weight), static_cast<T*>(to));
        }
    });
}

// Take hidden [T, H] through all layers, in place; products are in dtype.
int tokenbus_forward(int dtype, const Model* model, const Batch* batch, float* hidden,
                     Workspace* workspace) {
    return with_kind(dtype, [&](auto kind) {
        return Pass<decltype(kind)>(*model, *batch, hidden).run(*workspace) ? 0 : 1;
    });
}

// Attend q [T, Hq, D], tokens `q_stride` values apart, over pages; out: [T, Hq, D].
int tokenbus_attend(int dtype, const Batch* batch, const AttentionShape* shape, const void* q,
                    size_t q_stride, void* k_pages, void* v_pages, Workspace* workspace,
                    void* out) {
    return with_kind(dtype, [&](auto kind) {
        return attend_pages<decltype(kind)>(*batch, *shape, q, q_stride, k_pages, v_pages,
                                            *workspace, out);
    });
}

// out [T, H] = the weighted sums of the experts of x [T, H], of dtype.
int tokenbus_experts(int dtype, const Experts* experts, const Pairs* pairs, const void* x,
                     int num_threads, Workspace* workspace, float* out) {
    return with_kind(dtype, [&](auto kind) {
        using Kind = decltype(kind);
        ExpertsPass<Kind> pass(*experts, *pairs, static_cast<const typename Kind::Value*>(x), out);
        return pass.run(num_threads, *workspace) ? 0 : 1;
    });
}

// out [M, num_outputs] = linear(rms_norm(x)), products in dtype; norm: [num_inputs].
int tokenbus_linear(int dtype, const Linear* linear, const float* norm, float eps, const float* x,
                    int num_rows, int num_threads, Workspace* workspace, float* out) {
    return with_kind(dtype, [&](auto kind) {
        return linear_rows<decltype(kind)>(*linear, norm, eps, x, num_rows, num_threads,
                                           *workspace, out);
    });
}

}  // extern "C"
