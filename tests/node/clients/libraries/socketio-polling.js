import { connectBy, serve } from "./socketio.js";

export { serve };
export const connect = connectBy(["polling"]);
